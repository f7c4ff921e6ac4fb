//! The kernels' own source on the host: compiled as C++ when a test first asks for it, and launched thread by thread.
#![allow(unsafe_code)] // what was compiled is called

use std::cell::RefCell;
use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Result, bail};
use libloading::Library;

use super::convolution::{Pass, Shape};
use super::launch::{Address, Argument, Kind, Launch, Machine};
use crate::bf16::{Bf16, Element};

#[path = "library.rs"]
pub(super) mod library;

/// Launches blocks and threads in their order, or backwards: what depends on the order is a race.
pub(crate) struct Host {
    library: &'static Mutex<Library>,
    backwards: bool,
    /// What is kept instead of launched, if it is.
    recording: RefCell<Option<Vec<Call>>>,
}

/// One thing that a machine is told to do.
#[derive(Clone)]
pub(crate) enum Call {
    Launch(&'static str, Launch, Vec<Argument>),
    Convolve(Shape, Pass, [Address; 2], Address),
}

/// Words that lie on both sides of all memory and may not change.
const GUARD: [u64; 32] = [0xfff8_dead_fff8_beef; 32];
/// What new memory holds: two floats that are not numbers.
const POISON: u64 = 0x7fc0_0bad_7fc0_0bad;

/// Numbers between guards.
pub(crate) struct Memory {
    words: Vec<u64>,
    kind: Kind,
    count: usize,
}

impl Memory {
    /// Makes all its numbers this one, in f32.
    pub(crate) fn fill(&mut self, x: f32) {
        let word = u64::from(x.to_bits()) << 32 | u64::from(x.to_bits());
        let words = self.count / 2;
        self.words[GUARD.len()..][..words].fill(word);
        if self.count % 2 == 1 {
            let last = &mut self.words[GUARD.len() + words];
            *last = *last >> 32 << 32 | u64::from(x.to_bits());
        }
    }

    /// The numbers, after a look at the guards.
    pub(crate) fn read(&self) -> Vec<f32> {
        let (before, rest) = self.words.split_at(GUARD.len());
        let (middle, after) = rest.split_at(rest.len() - GUARD.len());
        assert!(
            before == GUARD && after == GUARD,
            "written outside of its memory"
        );
        let bytes: Vec<u8> = middle.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (used, spare) = bytes.split_at(self.count * self.kind.bytes());
        let poison = POISON.to_le_bytes();
        assert!(
            spare == &poison[poison.len() - spare.len()..],
            "written beyond its memory"
        );
        match self.kind {
            Kind::F32 => {
                let floats = used.chunks_exact(4);
                floats
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect()
            }
            Kind::Bf16 => {
                let halves = used.chunks_exact(2);
                halves
                    .map(|b| Bf16(u16::from_le_bytes([b[0], b[1]])).widen())
                    .collect()
            }
        }
    }
}

/// What numbers of a kind keep of these.
pub(crate) fn kept(kind: Kind, numbers: &[f32]) -> Vec<f32> {
    match kind {
        Kind::F32 => numbers.to_vec(),
        Kind::Bf16 => numbers.iter().map(|&x| Bf16::narrow(x).widen()).collect(),
    }
}

impl Host {
    fn new(library: &'static Mutex<Library>, backwards: bool) -> Host {
        Host {
            library,
            backwards,
            recording: RefCell::default(),
        }
    }

    /// One that launches in order; nothing where there is no C++ compiler.
    pub(crate) fn ahead() -> Option<Host> {
        Some(Host::new(library()?, false))
    }

    /// Keeps a call, if calls are kept.
    fn keeps(&self, call: impl FnOnce() -> Call) -> bool {
        let mut recording = self.recording.borrow_mut();
        recording.as_mut().map(|calls| calls.push(call())).is_some()
    }

    /// Runs work in both orders and gives what both gave, bit for bit; nothing where there is no C++ compiler.
    pub(crate) fn both_ways(
        work: impl Fn(&Host) -> Result<Vec<Vec<f32>>>,
    ) -> Option<Vec<Vec<f32>>> {
        let library = library()?;
        let [ahead, back] =
            [false, true].map(|backwards| work(&Host::new(library, backwards)).unwrap());
        let bits = |all: &[Vec<f32>]| -> Vec<Vec<u32>> {
            let of = |one: &Vec<f32>| one.iter().map(|x| x.to_bits()).collect();
            all.iter().map(of).collect()
        };
        assert!(
            bits(&ahead) == bits(&back),
            "the result depends on the order of threads"
        );
        Some(ahead)
    }

    /// Memory of these numbers.
    pub(crate) fn floats(&self, floats: &[f32]) -> Memory {
        self.numbers(Kind::F32, floats)
    }

    /// The same, narrowed to their kind.
    pub(crate) fn numbers(&self, kind: Kind, numbers: &[f32]) -> Memory {
        let mut bytes: Vec<u8> = match kind {
            Kind::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Kind::Bf16 => {
                let narrow = |&x: &f32| Bf16::narrow(x).0.to_le_bytes();
                numbers.iter().flat_map(narrow).collect()
            }
        };
        let spare = bytes.len().next_multiple_of(8) - bytes.len();
        bytes.extend(&POISON.to_le_bytes()[8 - spare..]);
        let words = bytes.chunks_exact(8);
        let words =
            words.map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
        Memory {
            words: GUARD.into_iter().chain(words).chain(GUARD).collect(),
            kind,
            count: numbers.len(),
        }
    }
}

impl Machine for Host {
    type Memory = Memory;
    type Recording = Vec<Call>;

    fn allocate(&self, kind: Kind, count: usize) -> Result<Memory> {
        assert!(
            self.recording.borrow().is_none(),
            "allocated while calls are kept"
        );
        let mut words = GUARD.to_vec();
        words.resize(GUARD.len() + (count * kind.bytes()).div_ceil(8), POISON);
        words.extend(GUARD);
        Ok(Memory { words, kind, count })
    }

    fn upload(&self, words: &[u64]) -> Result<Memory> {
        assert!(
            self.recording.borrow().is_none(),
            "uploaded while calls are kept"
        );
        Ok(Memory {
            words: [&GUARD, words, &GUARD].concat(),
            kind: Kind::F32,
            count: 2 * words.len(),
        })
    }

    fn address(&self, memory: &Memory) -> Address {
        Address(
            memory
                .words
                .as_ptr()
                .wrapping_add(GUARD.len())
                .expose_provenance() as u64,
        )
    }

    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        if self.keeps(|| Call::Launch(kernel, launch, arguments.to_vec())) {
            return Ok(());
        }
        type HostLaunch = unsafe extern "C" fn(
            *const c_char,
            *const [u32; 2],
            u32,
            u32,
            *const *const c_void,
            u32,
            u32,
        ) -> *const c_char;
        let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
        let pointers: Vec<*const c_void> = arguments
            .iter()
            .map(|argument| std::ptr::from_ref(argument).cast())
            .collect();
        let library = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: host_launch is declared so; kernels are held to their memory by its guards, and to their number of arguments.
        let message = unsafe {
            let host_launch = library
                .get::<HostLaunch>(b"host_launch")
                .map_err(candle_core::Error::wrap)?;
            let message = host_launch(
                name.as_ptr(),
                &launch.grid,
                launch.block,
                launch.shared,
                pointers.as_ptr(),
                pointers.len() as u32,
                self.backwards.into(),
            );
            if message.is_null() {
                return Ok(());
            }
            CStr::from_ptr(message).to_string_lossy().into_owned()
        };
        bail!("{kernel}: {message}")
    }

    fn convolve(&self, shape: &Shape, pass: Pass, from: [Address; 2], to: Address) -> Result<()> {
        if !self.keeps(|| Call::Convolve(*shape, pass, from, to)) {
            library::convolve(shape, pass, from, to);
        }
        Ok(())
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Call>>> {
        self.recording.replace(Some(Vec::new()));
        let done = work();
        let calls = self.recording.take();
        done.map(|()| calls)
    }

    fn replay(&self, recording: &Vec<Call>) -> Result<()> {
        recording.iter().try_for_each(|call| match call {
            Call::Launch(kernel, launch, arguments) => self.launch(kernel, *launch, arguments),
            Call::Convolve(shape, pass, from, to) => self.convolve(shape, *pass, *from, *to),
        })
    }
}

/// The compiled kernels; nothing, said once, where there is no C++ compiler.
fn library() -> Option<&'static Mutex<Library>> {
    static LIBRARY: OnceLock<Option<Mutex<Library>>> = OnceLock::new();
    let compiled = || {
        let Some(compiler) = compiler() else {
            println!(
                "skipped: the kernels for CUDA are tested with a C++ compiler (CXX, c++, g++ or clang++), and there is none"
            );
            return None;
        };
        let path = compile(&compiler);
        // SAFETY: our own library, whose initialisation does nothing.
        let library = unsafe { Library::new(&path) };
        let _ = std::fs::remove_file(&path);
        Some(Mutex::new(library.unwrap()))
    };
    LIBRARY.get_or_init(compiled).as_ref()
}

fn compiler() -> Option<String> {
    let named = env::var("CXX").ok();
    let candidates = named
        .into_iter()
        .chain(["c++", "g++", "clang++"].map(str::to_owned));
    candidates.into_iter().find(|name| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    })
}

fn compile(compiler: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/host/host.cpp");
    let path = env::temp_dir().join(format!(
        "ddpm-kernels-on-the-host-{}.so",
        std::process::id()
    ));
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra"])
        .args(["-Wno-unknown-pragmas", "-shared", "-fPIC", "-o"])
        .args([&path, &source])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{compiler} refuses {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    path
}

mod tests {
    use super::*;
    use crate::cuda::launch::arguments;

    /// What the host says of a launch of 64 threads; nothing where there is no compiler.
    fn told(kernel: &'static str, arguments: &[Argument]) -> Option<String> {
        let host = Host::ahead()?;
        let error = host.launch(kernel, LAUNCH, arguments).err();
        let error = error.map(|error| error.to_string());
        Some(error.unwrap_or_else(|| panic!("{kernel} was let through")))
    }

    /// The same of a kernel that is given 64 floats.
    fn told_of_floats(kernel: &'static str) -> Option<String> {
        let host = Host::ahead()?;
        let floats = host.floats(&[0.0; 64]);
        told(kernel, arguments![host.address(&floats)])
    }

    const LAUNCH: Launch = Launch {
        grid: [1, 1],
        block: 64,
        shared: 128,
    };

    #[test]
    fn a_barrier_that_a_thread_misses_is_an_error() {
        let Some(told) = told("of_the_host_missed_barrier", &[]) else {
            return;
        };
        assert!(
            told.contains("thread 5: a thread is not at the barrier"),
            "{told}"
        );
    }

    #[test]
    fn a_shuffle_that_a_lane_misses_is_an_error() {
        let Some(told) = told_of_floats("of_the_host_missed_shuffle") else {
            return;
        };
        assert!(
            told.contains("thread 5: a lane is not at the shuffle"),
            "{told}"
        );
    }

    #[test]
    fn a_product_that_a_lane_misses_is_an_error() {
        let Some(told) = told_of_floats("of_the_host_missed_product") else {
            return;
        };
        assert!(
            told.contains("thread 5: a lane is not at the shuffle"),
            "{told}"
        );
    }

    #[test]
    fn a_copy_from_between_two_multiples_of_16_bytes_is_an_error() {
        let Some(told) = told_of_floats("of_the_host_odd_place") else {
            return;
        };
        assert!(told.contains("do not lie at a multiple of 16"), "{told}");
    }

    /// Shared memory holds what it held until a copy is waited for.
    #[test]
    fn a_copy_arrives_when_it_is_waited_for() {
        let launch = Launch {
            block: 32,
            shared: 512,
            ..LAUNCH
        };
        let ran = Host::both_ways(|host| {
            let from = host.numbers(Kind::Bf16, &[1.0; 256]);
            let x = host.floats(&[0.0; 32]);
            let arguments = arguments![host.address(&from), host.address(&x)];
            host.launch("of_the_host_early", launch, arguments)?;
            Ok(vec![x.read()])
        });
        let Some(ran) = ran else { return };
        assert!(ran[0].iter().all(|x| x.is_nan()), "{:?}", ran[0]);
    }

    /// Every product by the table of the PTX ISA, and by matrices from shared memory as the kernels load them.
    #[test]
    fn products_of_tensor_cores_are_products_of_matrices() {
        let whole = |count: usize, step: usize| -> Vec<f32> {
            (0..count)
                .map(|i| ((i * step + i / 7) % 31) as f32 - 15.0)
                .collect()
        };
        let (a, b) = (whole(16 * 16, 5), whole(16 * 8, 11)); // sums of whole numbers are exact
        let launch = Launch {
            block: 32,
            shared: 48 * 24 * 2,
            ..LAUNCH
        };
        let ran = Host::both_ways(|host| {
            let [a, b] = [&a, &b].map(|numbers| host.numbers(Kind::Bf16, numbers));
            let d = host.floats(&[0.0; 3 * 16 * 8]);
            let arguments = arguments![host.address(&a), host.address(&b), host.address(&d)];
            host.launch("of_the_host_products", launch, arguments)?;
            Ok(vec![d.read()])
        });
        let Some(ran) = ran else { return };
        let product = |i: usize| -> f32 {
            let (row, column) = (i / 8, i % 8);
            (0..16).map(|k| a[16 * row + k] * b[8 * k + column]).sum()
        };
        let expected: Vec<f32> = (0..128).map(product).collect();
        assert_eq!(ran[0], expected.repeat(3));
    }

    #[test]
    fn shared_memory_that_was_not_asked_for_is_an_error() {
        let Some(told) = told("of_the_host_too_much_shared", &[]) else {
            return;
        };
        assert!(
            told.contains("beyond what the launch asks for (byte, line 128)"),
            "{told}"
        );
    }

    #[test]
    fn a_wrong_number_of_arguments_is_an_error() {
        let Some(told) = told("silu", arguments![1u32]) else {
            return;
        };
        assert!(told.contains("silu has 3 arguments, not 1"), "{told}");
    }

    #[test]
    #[should_panic(expected = "the result depends on the order of threads")]
    fn a_race_is_seen() {
        let launch = Launch {
            shared: 256,
            ..LAUNCH
        };
        let ran = Host::both_ways(|host| {
            let x = host.floats(&[0.0; 64]);
            host.launch("of_the_host_race", launch, arguments![host.address(&x)])?;
            Ok(vec![x.read()])
        });
        assert!(
            ran.is_some(),
            "no compiler, so: the result depends on the order of threads"
        );
    }

    #[test]
    #[should_panic(expected = "written outside of its memory")]
    fn memory_beyond_its_end_is_seen() {
        let ran = Host::both_ways(|host| {
            let (x, y) = (host.floats(&[1.0; 66]), host.floats(&[0.0; 64]));
            host.launch(
                "silu",
                LAUNCH,
                arguments![host.address(&x), host.address(&y), 66u64],
            )?;
            Ok(vec![y.read()])
        });
        assert!(
            ran.is_some(),
            "no compiler, so: written outside of its memory"
        );
    }
}
