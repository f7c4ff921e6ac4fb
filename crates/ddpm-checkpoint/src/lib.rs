//! What a trained model is on disk: diffusers' folders, what training needs besides, and models that others wrote.
//!
//! ```text
//! RUN/checkpoints/step-00001000/
//!   model_index.json                              the folder is a DDPMPipeline of diffusers
//!   unet/config.json                              the network
//!   unet/diffusion_pytorch_model.safetensors      its averaged weights
//!   scheduler/scheduler_config.json               the noise schedule and what the network predicts
//!   train_state.safetensors                       raw weights, Adam's moments, every average, counters
//!   run.toml                                      all settings
//!   README.md                                     the page that the Hub shows, with metadata and settings
//! ```
//!
//! A checkpoint is written into a hidden sibling, synced and renamed: it is whole or not there. Reading trusts
//! nothing: lengths, headers, JSON, names and shapes are checked, and a wrong one is an error that names it.
//!
//! Models that diffusers cannot express have `not-a-diffusers-pipeline.md` in place of `model_index.json`.

mod card;
mod error;
mod foreign;
mod hub;
mod model;
mod pickle;
mod pipeline;
mod run_folder;
mod run_lock;
mod shards;
mod tensor_file;
mod tensors;
mod torch_file;

mod durable;

pub use card::Card;
pub use durable::{make_folder, sync_folder};
pub use error::{Error, Result};
pub use foreign::{Arch, ForeignFile, Layout};
pub use hub::{Hub, HubModel, HubName, Tell};
pub use model::{
    Model, Weights, find_shipped, resolve_model, resolve_model_as, resolve_model_with,
};
pub use pipeline::{Pipeline, check_new};
pub use run_folder::{
    Checkpoint, Newest, Skipped, TrainState, checkpoints_folder, keep_last, list_checkpoints,
    newest_whole, read_run_toml, read_train_state, validate, write_checkpoint,
};
pub use run_lock::RunLock;
pub use tensor_file::{TensorFile, write_tensors};
pub use tensors::{Tensors, open_tensors};
