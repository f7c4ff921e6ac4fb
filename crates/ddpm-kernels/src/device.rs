//! The processor or card that somebody asks for by name: opened, and in words what was taken and why.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

/// A device as settings and flags name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// `auto`: the first NVIDIA card that can be used, otherwise the CPU.
    #[default]
    Auto,
    /// `cpu`: the processor, where networks go by plan.
    Cpu,
    /// `cpu-graph`: the processor, but with everything on one device as on a card, and operation by operation through candle's
    /// graph. Slower; for tests.
    CpuGraph,
    /// `cuda` or `cuda:N`: an NVIDIA card, the first if not said.
    Cuda(Option<usize>),
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::CpuGraph => f.write_str("cpu-graph"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cpu-graph" => Some(Self::CpuGraph),
            "cuda" => Some(Self::Cuda(None)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(number)
                .map(|number| Self::Cuda(Some(number))),
        }
        .ok_or_else(|| format!("`{text}` is no device, expected auto, cpu, cuda or cuda:N"))
    }
}

/// Why a device cannot be had: what there is instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDevice(String);

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoDevice {}

/// A device that was opened. As text it is what it is, and why it was taken.
#[derive(Clone, Debug)]
pub struct Place {
    device: Device,
    by_graph: bool,
    story: String,
}

impl Place {
    /// The processor.
    pub fn cpu() -> Self {
        Self::on_the_cpu(false, "cpu".to_owned())
    }

    /// Opens what is asked for. `auto` always finds something.
    ///
    /// # Errors
    /// A card that is not there or cannot be used; the message says what is missing, or what cards there are.
    pub fn open(name: DeviceName) -> Result<Self, NoDevice> {
        match name {
            DeviceName::Cpu => Ok(Self::cpu()),
            DeviceName::CpuGraph => {
                let story = "cpu, operation by operation through candle's graph (cpu-graph)";
                Ok(Self::on_the_cpu(true, story.to_owned()))
            }
            DeviceName::Auto => {
                Ok(card::open(0)
                    .unwrap_or_else(|why| Self::on_the_cpu(false, format!("cpu: {why}"))))
            }
            DeviceName::Cuda(number) => card::open(number.unwrap_or(0))
                .map_err(|why| NoDevice(format!("{name} cannot be had: {why}"))),
        }
    }

    fn on_the_cpu(by_graph: bool, story: String) -> Self {
        Self {
            device: Device::Cpu,
            by_graph,
            story,
        }
    }

    /// Where tensors are to be.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether networks go by the processor's plan here; otherwise by a card's, or operation by operation through candle's graph,
    /// with gradients that stay where the weights are.
    pub fn plans(&self) -> bool {
        self.device.is_cpu() && !self.by_graph
    }

    /// Whether networks go operation by operation through candle's graph here, even those that have a plan.
    pub fn goes_by_graph(&self) -> bool {
        self.by_graph
    }

    /// What was found out on the card since this was last asked, a line each: better ways that could not be taken, and why; with
    /// `DDPM_CUDA_TELL=1` in the environment, also which ways were taken. Nothing on the processor.
    pub fn notes(&self) -> Vec<String> {
        card::notes()
    }

    /// Bytes of the card's memory that are free, and all of it. None on the processor. What was freed and is kept for what comes
    /// next counts as free.
    pub fn card_memory(&self) -> Option<(u64, u64)> {
        card::memory(&self.device)
    }

    /// Settings of a card, for the whole process; on the processor there is nothing to set. With `tf32`, products of matrices and
    /// convolutions in f32 round their factors to 10 bits, which its matrix units are fast at. With `deterministic`, convolutions
    /// take only algorithms that give the same bits every time; without, whichever is measured to be the fastest.
    pub fn set_products(&self, tf32: bool, deterministic: bool) {
        card::set_products(tf32, deterministic);
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.story)
    }
}

/// Whether this build has CUDA, so that a card can be opened where there is one.
pub const WITH_CUDA: bool = cfg!(feature = "cuda");

/// Whether `name` comes to a card here. Nothing is opened.
pub fn is_a_card(name: DeviceName) -> bool {
    match name {
        DeviceName::Cpu | DeviceName::CpuGraph => false,
        DeviceName::Cuda(_) => true,
        DeviceName::Auto => card::usable(0).is_ok(),
    }
}

#[cfg(not(feature = "cuda"))]
mod card {
    use super::{Device, Place};

    const WITHOUT: &str = "this build has no CUDA; `cargo xtask cuda` makes one that has";

    pub(super) fn open(_: usize) -> Result<Place, String> {
        Err(WITHOUT.to_owned())
    }

    pub(super) fn usable(_: usize) -> Result<(), String> {
        Err(WITHOUT.to_owned())
    }

    pub(super) fn memory(_: &Device) -> Option<(u64, u64)> {
        None
    }

    pub(super) fn notes() -> Vec<String> {
        Vec::new()
    }

    pub(super) fn set_products(_: bool, _: bool) {}
}

#[cfg(feature = "cuda")]
mod card {
    use candle_core::cuda_backend::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    use super::{Device, Place};
    use crate::cuda::card::first_line;
    use crate::cuda::notes;
    use crate::cuda::settings::Without;

    /// A card as its driver describes it.
    pub(super) struct Card {
        name: String,
        bytes: usize,
        compute: (i32, i32),
    }

    /// Opens a card with one stream for all its work.
    pub(super) fn open(number: usize) -> Result<Place, String> {
        let card = usable(number)?;
        let without = std::env::var("DDPM_CUDA_WITHOUT").unwrap_or_default();
        let without = without.parse::<Without>();
        without
            .map_err(|e| format!("DDPM_CUDA_WITHOUT: {e}"))?
            .set();
        let device = Device::new_cuda_with_stream(number)
            .map_err(|e| format!("cuda:{number} does not open: {}", first_line(&e)))?;
        if let Device::Cuda(device) = &device {
            // SAFETY: events order the work of several streams. All work of this device goes to the one stream made with it,
            // from whatever thread, and the memory of tensors is freed in the same stream.
            #[allow(unsafe_code, reason = "candle offers no safe way")]
            unsafe {
                device.disable_event_tracking();
            }
            keep_freed_memory(device);
        }
        let gib = card.bytes as f64 / (1u64 << 30) as f64;
        let (major, minor) = card.compute;
        let story = format!(
            "cuda:{number}: {}, {gib:.1} GiB, {}, compute {major}.{minor}",
            card.name,
            driver()
        );
        Ok(Place {
            device,
            by_graph: false,
            story,
        })
    }

    /// Looks whether a card can be used, opening nothing: what is missing would otherwise end the program.
    pub(super) fn usable(number: usize) -> Result<Card, String> {
        libraries()?;
        result::init().map_err(|e| format!("the driver does not start: {}", told(e)))?;
        let count = result::device::get_count()
            .map_err(|e| format!("the driver counts no cards: {}", told(e)))?;
        let cards = (0..count)
            .map(card)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("the driver does not describe its cards: {}", told(e)))?;
        let known: Vec<String> = cards
            .iter()
            .enumerate()
            .map(|(i, card)| format!("cuda:{i} ({})", card.name))
            .collect();
        let Some(card) = cards.into_iter().nth(number) else {
            return Err(match known.as_slice() {
                [] => "the driver shows no card (CUDA_VISIBLE_DEVICES may hide some)".to_owned(),
                known => format!("there is no cuda:{number}, only {}", known.join(", ")),
            });
        };
        new_enough(&card)?;
        Ok(card)
    }

    pub(super) fn memory(device: &Device) -> Option<(u64, u64)> {
        let Device::Cuda(device) = device else {
            return None;
        };
        let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
        Some((free as u64 + unused_in_the_pool(device), total as u64))
    }

    pub(super) fn notes() -> Vec<String> {
        let tell = std::env::var("DDPM_CUDA_TELL").unwrap_or_default();
        notes::untold(!matches!(tell.as_str(), "" | "0"))
    }

    /// Candle allocates from the driver's pool, which gives back what is free whenever somebody waits for the card, and must ask
    /// for it again at the next step. It is told to give back nothing. Some cards have no pool, and then nothing is kept.
    fn keep_freed_memory(device: &CudaDevice) {
        let mut bytes = u64::MAX;
        if let Some(pool) = pool(device) {
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            // SAFETY: the pool is the card's own, and this attribute is 64 bits.
            #[allow(unsafe_code, reason = "cudarc has no safe call")]
            let _ = unsafe {
                result::mem_pool::set_attribute(pool, threshold, (&raw mut bytes).cast())
            };
        }
    }

    /// Bytes that the pool has from the card and nobody has from it.
    fn unused_in_the_pool(device: &CudaDevice) -> u64 {
        use sys::CUmemPool_attribute as Attribute;
        let Some(pool) = pool(device) else { return 0 };
        let bytes = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the pool is the card's own, and these attributes are 64 bits.
            #[allow(unsafe_code, reason = "cudarc has no safe call")]
            let told = unsafe {
                result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())
            };
            told.ok().map(|()| bytes)
        };
        let reserved = bytes(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT);
        let used = bytes(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
        match (reserved, used) {
            (Some(reserved), Some(used)) => reserved.saturating_sub(used),
            _ => 0,
        }
    }

    /// The pool that candle allocates from.
    fn pool(device: &CudaDevice) -> Option<sys::CUmemoryPool> {
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().ok()?;
        if !context.has_async_alloc() {
            return None;
        }
        // SAFETY: the device is the context's.
        #[allow(unsafe_code, reason = "cudarc trusts its caller with device numbers")]
        unsafe { result::device::get_mem_pool(context.cu_device()) }.ok()
    }

    pub(super) fn set_products(tf32: bool, deterministic: bool) {
        crate::cuda::use_tf32(tf32);
        crate::cuda::use_deterministic(deterministic);
    }

    /// Everything that is opened when first called, and ends the program where it is not there.
    #[cfg(feature = "dynamic-loading")]
    fn libraries() -> Result<(), String> {
        use candle_core::cuda_backend::cudarc::{cublas, cudnn, curand};
        // SAFETY: opens libraries of these names as every later call does, which runs their initialisers.
        #[allow(unsafe_code, reason = "libraries are opened")]
        let there = unsafe {
            [
                ("libcuda.so.1 (the NVIDIA driver)", sys::is_culib_present()),
                ("libcublas.so (cuBLAS)", cublas::sys::is_culib_present()),
                ("libcurand.so (cuRAND)", curand::sys::is_culib_present()),
                ("libcudnn.so (cuDNN)", cudnn::sys::is_culib_present()),
            ]
        };
        match there.iter().find(|(_, there)| !there) {
            Some((name, _)) => Err(format!(
                "no {name} is found; LD_LIBRARY_PATH says where to look"
            )),
            None => Ok(()),
        }
    }

    /// Linked programs would not have started without them.
    #[cfg(not(feature = "dynamic-loading"))]
    fn libraries() -> Result<(), String> {
        Ok(())
    }

    fn card(number: i32) -> Result<Card, result::DriverError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let device = result::device::get(number)?;
        // SAFETY: the device is one that the driver has just named.
        #[allow(unsafe_code, reason = "cudarc trusts its caller with device numbers")]
        let (bytes, major, minor) = unsafe {
            (
                result::device::total_mem(device)?,
                result::device::get_attribute(
                    device,
                    Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                )?,
                result::device::get_attribute(
                    device,
                    Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )?,
            )
        };
        Ok(Card {
            name: result::device::get_name(device)?,
            bytes,
            compute: (major, minor),
        })
    }

    /// The card and its driver against what this build was compiled for.
    fn new_enough(card: &Card) -> Result<(), String> {
        let (major, minor) = card.compute;
        if let Some(built) = built_for(option_env!("CUDA_COMPUTE_CAP"))
            && 10 * major + minor < built
        {
            return Err(format!(
                "{} has compute capability {major}.{minor}, and this build is for {}.{} on; build it anew with CUDA_COMPUTE_CAP={major}{minor}",
                card.name,
                built / 10,
                built % 10
            ));
        }
        let (needs, has) = (
            built_for(option_env!("CUDARC_CUDA_VERSION")),
            driver_version(),
        );
        if let (Some(needs), Some(has)) = (needs, has)
            && has < needs
        {
            let text = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(format!(
                "the driver is for CUDA up to {}, and this build needs {}: a newer driver, or a build with an older nvcc",
                text(has),
                text(needs)
            ));
        }
        Ok(())
    }

    /// A number that the build was told, without a letter behind it.
    fn built_for(text: Option<&str>) -> Option<i32> {
        text?.trim_end_matches(['a', 'f']).parse().ok()
    }

    /// The version of CUDA that the driver is for, as 13000 for 13.0.
    fn driver_version() -> Option<i32> {
        let mut version = 0;
        // SAFETY: the driver writes one number to the place it is given.
        #[allow(unsafe_code, reason = "cudarc has no safe call")]
        let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        status.result().is_ok().then_some(version)
    }

    /// What the driver says of itself.
    fn driver() -> String {
        match driver_version() {
            Some(version) => format!("driver for CUDA {}.{}", version / 1000, version % 1000 / 10),
            None => "driver unknown".to_owned(),
        }
    }

    /// What the driver calls an error.
    fn told(error: result::DriverError) -> String {
        let text = error
            .error_string()
            .ok()
            .and_then(|text| text.to_str().ok());
        text.map_or_else(|| format!("{:?}", error.0), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_others_are_refused_with_what_there_is() {
        for name in [
            DeviceName::Auto,
            DeviceName::Cpu,
            DeviceName::CpuGraph,
            DeviceName::Cuda(None),
            DeviceName::Cuda(Some(3)),
        ] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in [
            "", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda0", "CPU",
        ] {
            let error = wrong.parse::<DeviceName>().unwrap_err();
            assert_eq!(
                error,
                format!("`{wrong}` is no device, expected auto, cpu, cuda or cuda:N")
            );
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        for (name, plans, story) in [
            (DeviceName::Cpu, true, "cpu"),
            (
                DeviceName::CpuGraph,
                false,
                "cpu, operation by operation through candle's graph (cpu-graph)",
            ),
        ] {
            let place = Place::open(name).unwrap();
            assert!(place.device().is_cpu() && !is_a_card(name));
            assert_eq!((place.plans(), place.to_string().as_str()), (plans, story));
            assert_eq!(place.card_memory(), None);
        }
    }

    /// Holds with a card and without: what `auto` takes is what it is said to come to.
    #[test]
    fn auto_takes_a_card_or_says_why_not() {
        let place = Place::open(DeviceName::Auto).unwrap();
        let story = place.to_string();
        assert_eq!(
            place.device().is_cuda(),
            is_a_card(DeviceName::Auto),
            "{story}"
        );
        let begin = if place.device().is_cuda() {
            "cuda:0: "
        } else {
            "cpu: "
        };
        assert!(
            story.starts_with(begin) && story.len() > begin.len() + 10,
            "{story}"
        );
        let far = Place::open(DeviceName::Cuda(Some(977)))
            .unwrap_err()
            .to_string();
        assert!(far.starts_with("cuda:977 cannot be had: "), "{far}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let error = Place::open(DeviceName::Cuda(None)).unwrap_err().to_string();
        assert_eq!(
            error,
            "cuda cannot be had: this build has no CUDA; `cargo xtask cuda` makes one that has"
        );
    }
}
