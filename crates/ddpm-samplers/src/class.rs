//! diffusers' scheduler classes: their names and the keys of each with its default, as `scheduler_config.json` has them.

use serde_json::{Map, Value};
use std::fmt;
use std::sync::OnceLock;

/// A scheduler class of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchedulerClass {
    /// [`ancestral_with`](crate::ancestral_with).
    Ddpm,
    /// [`ddim_with`](crate::ddim_with).
    Ddim,
    /// [`ddim_inversion_of`](crate::ddim_inversion_of).
    DdimInverse,
    /// [`dpm_solver`](crate::dpm_solver).
    DpmSolverMultistep,
    /// [`dpm_solver_singlestep`](crate::dpm_solver_singlestep).
    DpmSolverSinglestep,
    /// [`unipc`](crate::unipc).
    UniPc,
    /// [`deis`](crate::deis).
    Deis,
    /// [`pndm`](crate::pndm).
    Pndm,
    /// [`lms`](crate::lms).
    Lms,
    /// [`euler`](crate::euler).
    Euler,
    /// [`euler_ancestral`](crate::euler_ancestral).
    EulerAncestral,
    /// [`heun`](crate::heun).
    Heun,
    /// [`kdpm2`](crate::kdpm2).
    Kdpm2,
    /// [`kdpm2_ancestral`](crate::kdpm2_ancestral).
    Kdpm2Ancestral,
    /// [`euler`](crate::euler) over Karras' levels, for networks with his preconditioning.
    EdmEuler,
    /// [`dpm_solver`](crate::dpm_solver) over Karras' levels, for networks with his preconditioning.
    EdmDpmSolverMultistep,
    /// [`score_sde_ve`](crate::score_sde_ve).
    ScoreSdeVe,
    /// [`repaint`](crate::repaint).
    RePaint,
}

impl SchedulerClass {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, SchedulerClass); 18] = [
        ("DDPMScheduler", SchedulerClass::Ddpm),
        ("DDIMScheduler", SchedulerClass::Ddim),
        ("DDIMInverseScheduler", SchedulerClass::DdimInverse),
        (
            "DPMSolverMultistepScheduler",
            SchedulerClass::DpmSolverMultistep,
        ),
        (
            "DPMSolverSinglestepScheduler",
            SchedulerClass::DpmSolverSinglestep,
        ),
        ("UniPCMultistepScheduler", SchedulerClass::UniPc),
        ("DEISMultistepScheduler", SchedulerClass::Deis),
        ("PNDMScheduler", SchedulerClass::Pndm),
        ("LMSDiscreteScheduler", SchedulerClass::Lms),
        ("EulerDiscreteScheduler", SchedulerClass::Euler),
        (
            "EulerAncestralDiscreteScheduler",
            SchedulerClass::EulerAncestral,
        ),
        ("HeunDiscreteScheduler", SchedulerClass::Heun),
        ("KDPM2DiscreteScheduler", SchedulerClass::Kdpm2),
        (
            "KDPM2AncestralDiscreteScheduler",
            SchedulerClass::Kdpm2Ancestral,
        ),
        ("EDMEulerScheduler", SchedulerClass::EdmEuler),
        (
            "EDMDPMSolverMultistepScheduler",
            SchedulerClass::EdmDpmSolverMultistep,
        ),
        ("ScoreSdeVeScheduler", SchedulerClass::ScoreSdeVe),
        ("RePaintScheduler", SchedulerClass::RePaint),
    ];

    /// Its name in diffusers.
    pub fn name(self) -> &'static str {
        let mut names = SchedulerClass::NAMES.into_iter();
        names
            .find(|(_, class)| *class == self)
            .map_or("", |(name, _)| name)
    }

    /// Whether its `scheduler_config.json` has this key.
    pub fn has(self, key: &str) -> bool {
        self.default(key).is_some()
    }

    /// The value that a missing key of this class has.
    pub(crate) fn default(self, key: &str) -> Option<&'static Value> {
        self.defaults()?.get(key)
    }

    /// All keys of this class.
    pub(crate) fn defaults(self) -> Option<&'static Map<String, Value>> {
        table().get(self.name())?.as_object()
    }

    /// Whether any class has this key: diffusers keeps the keys of other classes in a file, for when it is switched back.
    pub(crate) fn any_has(key: &str) -> bool {
        SchedulerClass::NAMES
            .iter()
            .any(|(_, class)| class.has(key))
    }
}

impl fmt::Display for SchedulerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Made by tests/golden/scheduler_classes.py.
const CLASSES: &str = include_str!("classes.json");

fn table() -> &'static Map<String, Value> {
    static TABLE: OnceLock<Map<String, Value>> = OnceLock::new();
    // A test reads the file; that it parses is known.
    TABLE.get_or_init(|| serde_json::from_str(CLASSES).unwrap_or_default())
}
