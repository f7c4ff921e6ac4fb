//! Algorithm 1: loss, AdamW, EMA, exact resume.
//!
//! | line of Algorithm 1 | here |
//! |---|---|
//! | 1 repeat | [`Trainer`], an iterator of [`Report`]s |
//! | 2 x_0 ~ q(x_0), 3 t ~ Uniform(1..T), 4 eps ~ N(0, I) | [`Examples`], drawn at addresses of ddpm-random |
//! | 5 gradient step | [`Objective`], [`Adam`], [`clip_factor`], [`LearningRate`], [`ema_decay`] |
//! | 6 until converged | [`HeldOut`], [`picture`] |
//!
//! The next batch is drawn while the network computes.
//! [`Settings`] say what to do, [`Run`] keeps it on disk ([`Init`] begins it from a model, [`export`] gives its model away) and
//! shows it ([`EventFile`]s for TensorBoard, [`Run::report`], [`report_on`]), [`memory_needed`] says whether it fits,
//! [`on_threads`] gives it threads with a large stack.
//!
//! ```
//! use ddpm_data::Dataset;
//! use ddpm_train::{Layer, Settings, Trainer, on_threads};
//!
//! let text = r#"
//! data.name = "stripes"
//! train = { steps = 3, batch_size = 2 }
//! optimizer = { learning_rate = 1e-3, warm_up = 0 }
//! model = { block_out_channels = [4, 8], down_block_types = ["DownBlock2D", "AttnDownBlock2D"], norm_num_groups = 4 }
//! "#;
//! let settings = Settings::from_layers(&[Layer::from_text("example", text)?])?.resolved();
//! let stripes = [[0, 255].repeat(8), [255, 0].repeat(8)].concat();
//! let data = Dataset::new("stripes", stripes, (4, 4, 1), None, vec![])?;
//!
//! let reports = on_threads(1, || Trainer::new(&settings, data)?.collect::<ddpm_train::Result<Vec<_>>>())??;
//! assert_eq!(reports.len(), 3);
//! assert_eq!(reports[2].images, 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod settings;

mod adam;
mod by_graph;
mod durable;
mod ema;
mod error;
mod event_file;
mod events;
mod export;
mod held_out;
mod init;
mod learning_rate;
mod memory;
mod metrics;
mod objective;
mod prefetch;
mod presets;
mod report;
mod run;
mod samples;
mod scheduler;
mod state;
mod threads;
mod trainer;

pub use adam::Adam;
pub use ddpm_kernels::clip_factor;
pub use ema::{EmaWarmUp, ema_decay};
pub use error::{Error, Result};
pub use event_file::{EventFile, Histogram, Shown};
pub use export::{Exported, Stored, export};
pub use held_out::HeldOut;
pub use init::Init;
pub use learning_rate::{Decay, LearningRate};
pub use memory::{memory_available, memory_needed};
pub use metrics::{Metrics, MetricsLine, read_metrics};
pub use objective::{Examples, Objective};
pub use presets::{PRESETS, Preset};
pub use report::{Neighbour, nearest};
pub use run::{Progress, Recorded, Run, report_on};
pub use samples::{picture, sample};
pub use scheduler::scheduler;
pub use settings::{Layer, Settings};
pub use threads::on_threads;
pub use trainer::{Report, Trainer};
