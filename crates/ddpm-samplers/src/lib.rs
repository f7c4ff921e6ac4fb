//! Every way to walk from x_T back to x_0: one file an algorithm.

mod ancestral;
mod config;
mod ddim;
mod ddim_inversion;
mod error;
mod process;
mod sampler;

pub use ancestral::{Ancestral, ancestral};
pub use config::{Betas, SchedulerConfig};
pub use ddim::{Ddim, DdimSettings, Direction, Landing, ddim, ddim_with};
pub use ddim_inversion::{DdimInversion, ddim_inversion};
pub use error::{Error, Result};
pub use process::{Clip, Process, Step, Walk};
pub use sampler::{Sampler, SamplerKind};
