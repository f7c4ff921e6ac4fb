//! What can go wrong: impossible schedules, tensors that do not fit together, quantities that are not defined.

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure names the thing, its value and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A schedule of zero steps was asked for.
    #[error("a schedule needs at least one step, but T is 0")]
    NoSteps,
    /// A beta outside (0, 1].
    #[error("beta is {value} at t = {t}, but every beta must lie in (0, 1]")]
    Beta {
        /// The step, counted from 1.
        t: usize,
        /// The beta of that step.
        value: f64,
    },
    /// alpha-bar must fall at every step; a beta that rounds away, or an alpha-bar that reached 0 early, stops it.
    #[error(
        "alpha_bar must fall at every step, but goes from {previous:e} to {value:e} at t = {t} of {steps} (only the last step may reach 0)"
    )]
    AlphaBar {
        /// The step, counted from 1.
        t: usize,
        /// The number of steps T.
        steps: usize,
        /// alpha-bar at t - 1.
        previous: f64,
        /// alpha-bar at t.
        value: f64,
    },
    /// A number that shapes a schedule, a loss or a weighting is impossible.
    #[error("{owner}: {name} is {value}, expected {expected}")]
    Setting {
        /// What the number belongs to.
        owner: &'static str,
        /// The name of the number.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would have been right.
        expected: &'static str,
    },
    /// Zero terminal SNR moves the last step and keeps the first: they must be two.
    #[error(
        "zero terminal SNR needs a schedule of at least 2 steps, because it keeps the first and moves the last"
    )]
    ZeroTerminalSnrOfOneStep,
    /// A time that the schedule does not have.
    #[error("timestep {t} is outside 1..={steps}")]
    Timestep {
        /// The time asked for.
        t: usize,
        /// The number of steps T of the schedule.
        steps: usize,
    },
    /// A respaced schedule cannot have that many steps.
    #[error("cannot keep {asked} of {steps} steps: the number must lie in 1..={steps}")]
    StepCount {
        /// The number of steps asked for.
        asked: usize,
        /// The number of steps there are.
        steps: usize,
    },
    /// Leading spacing with an offset that runs over the end.
    #[error(
        "leading spacing of {asked} of {steps} steps with offset {offset} ends at network time {last}, beyond {}", .steps - 1
    )]
    Offset {
        /// The number of steps asked for.
        asked: usize,
        /// The number of steps there are.
        steps: usize,
        /// The offset asked for.
        offset: usize,
        /// The network time (counted from 0) that the last step would have.
        last: usize,
    },
    /// The same step twice in a list of steps to keep.
    #[error("timestep {t} is listed twice among the steps to keep")]
    RepeatedTimestep {
        /// The step, counted from 1.
        t: usize,
    },
    /// guided-diffusion's `ddimN` found no stride.
    #[error(
        "no integer stride keeps exactly {asked} of {steps} steps (`ddim{asked}`); the nearest that exist are {nearest}"
    )]
    Stride {
        /// The number of steps asked for.
        asked: usize,
        /// The number of steps there are.
        steps: usize,
        /// Names that would work.
        nearest: String,
    },
    /// guided-diffusion's list asks more of a section than it has.
    #[error("section {section} of `{text}` asks for {asked} steps, but holds {size} of {steps}")]
    Section {
        /// Which entry of the list, counted from 1.
        section: usize,
        /// The whole text.
        text: String,
        /// The number of steps that the entry asks for.
        asked: usize,
        /// The number of steps in that section.
        size: usize,
        /// The number of steps there are.
        steps: usize,
    },
    /// A respacing text that is neither `ddimN` nor a list of numbers.
    #[error(
        "cannot read respacing `{text}`: expected a number (`250`), a list of numbers (`10,15,20`) or `ddimN` (`ddim50`)"
    )]
    RespacingText {
        /// The text.
        text: String,
    },
    /// Two tensors that belong together have different shapes.
    #[error("{name} has shape {got:?}, expected {expected:?} as {other}")]
    Shape {
        /// The tensor with the wrong shape.
        name: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The tensor it must agree with.
        other: &'static str,
        /// The shape of that one.
        expected: Vec<usize>,
    },
    /// Every image has its own t, so there must be as many as images.
    #[error("{images} images but {timesteps} timesteps: every image needs its own t")]
    Batch {
        /// The first dimension of the images.
        images: usize,
        /// The number of timesteps.
        timesteps: usize,
    },
    /// A quantity that divides by sqrt(alpha_bar_t) where alpha_bar_t = 0.
    #[error(
        "{quantity} is not defined at t = {t}, where alpha_bar is 0 and x_t holds nothing of the image: {instead}"
    )]
    ZeroSnr {
        /// What was asked for.
        quantity: &'static str,
        /// The step, counted from 1.
        t: usize,
        /// What to do instead.
        instead: &'static str,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// The network failed.
    #[error("denoiser: {0}")]
    Denoiser(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The source of noise failed.
    #[error("noise: {0}")]
    Noise(#[source] Box<dyn std::error::Error + Send + Sync>),
}
