//! What can go wrong on the way from noise to image, and in a scheduler's configuration.

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Every failure names the thing, its value and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mathematics, the network or the source of noise failed.
    #[error(transparent)]
    Core(#[from] ddpm_core::Error),
    /// A setting of a walk is impossible.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// The name of the setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would have been right.
        expected: &'static str,
    },
    /// More or fewer steps than a walk over levels can have.
    #[error("{asked} steps of a schedule of {steps}: expected 1..={most}")]
    StepCount {
        /// How many were asked for.
        asked: usize,
        /// How many the schedule of training has.
        steps: usize,
        /// The most that this sampler can make of them.
        most: usize,
    },
    /// Times that a walk cannot visit one after the other.
    #[error("the timesteps must be at least one number, fall, and lie in 0..{steps}")]
    Times {
        /// How many the schedule of training has.
        steps: usize,
    },
    /// Numbers that are too few, or in the wrong order.
    #[error("the {name} must be {expected}")]
    Order {
        /// What they are.
        name: &'static str,
        /// What would have been right.
        expected: &'static str,
    },
    /// Times or sigmas of one's own, and a curve that makes them.
    #[error(
        "{what} of one's own and a curve of sigmas (karras, exponential, beta, lu, flow) exclude each other"
    )]
    TimesAndCurve {
        /// What was given.
        what: &'static str,
    },
    /// A walk between the steps of training, for a network that is told its last x_0-hat.
    #[error(
        "the network is told what it last took for the clean images, which is known at the steps of training alone; this walk \
         tells it time {time}: choose ddpm or ddim, or no curve of sigmas"
    )]
    Between {
        /// The time that the network would have been told.
        time: f64,
    },
    /// The sampler works on steps, and the network has none.
    #[error(
        "{class} works on steps of training, but the network was trained at any sigma: choose another sampler"
    )]
    NoSteps {
        /// The scheduler's class.
        class: &'static str,
    },
    /// The sampler knows no sigmas.
    #[error("{class} works on steps of training: give it timesteps, not sigmas")]
    NoSigmas {
        /// The scheduler's class.
        class: &'static str,
    },
    /// The sampler needs an image to begin with.
    #[error("RePaint needs an image with a known part: see `repaint`")]
    NeedsImage,
    /// Too few steps for PNDM.
    #[error("{asked} steps of PNDM: expected at least {least}, which its first steps need")]
    StepCountOfPndm {
        /// How many were asked for.
        asked: usize,
        /// The fewest.
        least: usize,
    },
    /// The sampler wants a variance from a network that says none.
    #[error(
        "the variance is to be learned, but the network has no channels for it: its output has as many as its input"
    )]
    NoVariance,
    /// The network answered with another shape than it was asked about.
    #[error(
        "the network was given {given:?} and returned {returned:?}, expected the same shape, or twice the channels"
    )]
    OutputShape {
        /// The shape of x_t.
        given: Vec<usize>,
        /// The shape of the output.
        returned: Vec<usize>,
    },
    /// The noise has another shape than the images.
    #[error("draw {draw} of noise has shape {got:?}, expected {expected:?}")]
    NoiseShape {
        /// How many draws came before.
        draw: usize,
        /// The shape of the noise.
        got: Vec<usize>,
        /// The shape of the images.
        expected: Vec<usize>,
    },
    /// Clipping ranges for another number of channels.
    #[error("clipping has ranges for {ranges} channels, but the images have {channels}")]
    ClipChannels {
        /// The number of ranges.
        ranges: usize,
        /// The number of channels.
        channels: usize,
    },
    /// A sampler nobody knows.
    #[error("unknown sampler `{name}`, expected one of: {known}")]
    UnknownSampler {
        /// The name.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A scheduler configuration that is not JSON.
    #[error("scheduler configuration: {0}")]
    Json(#[source] serde_json::Error),
    /// A key that no scheduler of ours has.
    #[error("scheduler configuration: unknown key `{key}` for {class}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The scheduler's class.
        class: &'static str,
    },
    /// A key with a value that cannot be used.
    #[error("scheduler configuration: `{key}` is {value}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// Something that diffusers' scheduler configuration has no words for.
    #[error("diffusers' scheduler configuration cannot express {what}")]
    Inexpressible {
        /// What it is.
        what: &'static str,
    },
}

/// Fails unless the setting `holds`.
pub(crate) fn require(
    holds: bool,
    name: &'static str,
    value: f64,
    expected: &'static str,
) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Setting {
            name,
            value,
            expected,
        }),
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Core(error.into())
    }
}
