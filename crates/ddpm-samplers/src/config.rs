//! A trained process on disk: diffusers' `scheduler_config.json` of any of its classes for images, and the sampler it asks for.

use crate::curve::karras_with;
use crate::keys::{Keys, meaning, strict, wrong};
use crate::levels::Clock;
use crate::meaning::Meaning;
use crate::solver::{Solver, Spread, read_variance, word_of_variance, words_of_spacing};
use crate::table::Table;
use crate::trained::{
    BETA_END, BETA_START, PREDICTIONS, Trained, TrainedEdm, TrainedSteps, check_steps, sigma_range,
};
use crate::{
    AncestralSettings, Betas, Clip, Curve, DdimSettings, DpmAlgorithm, End, Error, LevelChoice,
    Levels, Manner, PndmPlan, Process, Result, Sampler, SamplerKind, SchedulerClass, StepVariance,
};
use ddpm_core::{Prediction, Schedule, Spacing, Variance};
use serde_json::{Map, Value, json};

/// The version of diffusers whose files these are: written as `_diffusers_version`.
const DIFFUSERS_VERSION: &str = "0.42.1";

/// What `scheduler_config.json` says: how a network was trained, and how its owner would sample.
///
/// ```
/// use ddpm_samplers::{Choice, SamplerKind, SchedulerConfig};
///
/// let config = SchedulerConfig::from_json(r#"{
///     "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "variance_type": "fixed_large"
/// }"#)?;
/// let sampler = config.sampler(&Choice::steps(50))?;
/// assert_eq!((sampler.steps(), sampler.draws()), (50, 49));
///
/// let faster = config.with_kind(SamplerKind::UniPc)?.with("solver_order", 3)?;
/// assert_eq!(faster.sampler(&Choice::steps(8))?.evaluations(), 8);
/// assert_eq!(config, SchedulerConfig::from_json(&config.to_json())?);
/// # Ok::<(), ddpm_samplers::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    class: SchedulerClass,
    /// The keys of the file, those of other classes among them.
    said: Map<String, Value>,
    trained: Trained,
    solver: Solver,
    spread: Spread,
    clip: Clip,
    variance: StepVariance,
    set_alpha_to_one: bool,
}

/// Two files that say the same, be it by a key or by its default.
impl PartialEq for SchedulerConfig {
    fn eq(&self, other: &Self) -> bool {
        (self.class, &self.trained, &self.solver, &self.spread)
            == (other.class, &other.trained, &other.solver, &other.spread)
            && (&self.clip, self.variance, self.set_alpha_to_one)
                == (&other.clip, other.variance, other.set_alpha_to_one)
    }
}

/// What a walk is to be beyond what the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its steps.
    pub steps: Steps,
    /// Of DDIM alone: how much noise, in 0..=1.
    pub eta: f64,
    /// By the papers, or number for number as diffusers.
    pub manner: Manner,
    /// The clip of a sampler that clips, where the range of the data is known better than by the file.
    pub clip: Option<Clip>,
}

/// The steps of a walk.
#[derive(Clone, Debug, PartialEq)]
pub enum Steps {
    /// So many, spaced as the file says.
    Number(usize),
    /// At these network times, 0..T, falling: diffusers' `timesteps`.
    Times(Vec<usize>),
    /// From each of these sigmas to the next, falling: diffusers' `sigmas`.
    Sigmas(Vec<f64>),
}

impl Choice {
    /// So many steps by the papers, without noise where there is a choice.
    pub fn steps(steps: usize) -> Self {
        Choice {
            steps: Steps::Number(steps),
            eta: 0.0,
            manner: Manner::Paper,
            clip: None,
        }
    }

    /// The same number for number as diffusers.
    pub fn as_diffusers(self) -> Self {
        Choice {
            manner: Manner::Diffusers,
            ..self
        }
    }
}

impl SchedulerConfig {
    /// The configuration of a network trained here: a `DDPMScheduler` with trailing spacing.
    ///
    /// # Errors
    /// When the betas make no schedule of `steps` steps, at most a million; when the range of the clipping is not a finite
    /// number above 0, or the file has no words for it: for [`Clip::PerChannel`] write [`Clip::None`] and set the clip of
    /// the [`Choice`] where the range of the data is known.
    pub fn ddpm(
        betas: Betas,
        steps: usize,
        prediction: Prediction,
        variance: Variance,
        clip: Clip,
    ) -> Result<Self> {
        check_steps(steps)?;
        let mut said = words_of_betas(&betas);
        said.insert("num_train_timesteps".to_owned(), json!(steps));
        said.insert("prediction_type".to_owned(), json!(word_of(prediction)));
        let variance = word_of_variance(StepVariance::Fixed(variance));
        said.insert("variance_type".to_owned(), json!(variance));
        said.insert("timestep_spacing".to_owned(), json!("trailing"));
        match clip {
            Clip::None => {
                said.insert("clip_sample".to_owned(), json!(false));
            }
            Clip::Range(range) => {
                // Before it is a number of JSON, which has no infinity.
                check_range(range)?;
                said.insert("clip_sample_range".to_owned(), json!(range));
            }
            Clip::Dynamic { ratio, most } => {
                said.insert("thresholding".to_owned(), json!(true));
                said.insert("dynamic_thresholding_ratio".to_owned(), json!(ratio));
                said.insert("sample_max_value".to_owned(), json!(most));
            }
            Clip::PerChannel(_) => {
                return Err(Error::Inexpressible {
                    what: "clipping that differs between channels",
                });
            }
        }
        SchedulerConfig::read(SchedulerClass::Ddpm, said, None)
    }

    /// The same with the betas rescaled to zero terminal SNR (`rescale_betas_zero_snr`).
    ///
    /// # Errors
    /// When the schedule has only one step.
    pub fn with_zero_terminal_snr(mut self) -> Result<Self> {
        let key = "rescale_betas_zero_snr".to_owned();
        self.said.insert(key, json!(true));
        SchedulerConfig::read(self.class, self.said, None)
    }

    /// Reads `scheduler_config.json`; keys that are missing or null take diffusers' defaults.
    ///
    /// # Errors
    /// When the text is no JSON object; when its class is none of [`SchedulerClass`]; when no class has a key (unless it is null or
    /// starts with `_`; diffusers keeps keys of one class in files of another); when a value has the wrong type or asks for
    /// something that is not there.
    pub fn from_json(text: &str) -> Result<Self> {
        let mut said: Map<String, Value> =
            serde_json::from_str(&strict(text)).map_err(Error::Json)?;
        let class = said.remove("_class_name").filter(|name| !name.is_null());
        let class = match class {
            Some(name) => meaning("_class_name", &name, &SchedulerClass::NAMES)?,
            None => {
                let names = SchedulerClass::NAMES.map(|(name, _)| format!("`{name}`"));
                let expected = format!("one of {}", names.join(", "));
                return Err(wrong("_class_name", "missing", expected));
            }
        };
        said.retain(|key, value| !key.starts_with('_') && !value.is_null());
        if let Some(key) = said.keys().find(|key| !SchedulerClass::any_has(key)) {
            return Err(Error::UnknownKey {
                key: key.clone(),
                class: class.name(),
            });
        }
        SchedulerConfig::read(class, said, None)
    }

    /// `scheduler_config.json`, its keys in order as diffusers writes them, and the keys of other classes that it was read with.
    pub fn to_json(&self) -> String {
        let mut file = self.class.defaults().cloned().unwrap_or_default();
        // An infinity is no JSON; diffusers takes it for a missing one.
        file.remove("lambda_min_clipped");
        for (key, value) in &self.said {
            file.insert(key.clone(), value.clone());
        }
        file.retain(|_, value| !matches!(value.as_str(), Some("-Infinity")));
        file.insert("_class_name".to_owned(), json!(self.class.name()));
        file.insert("_diffusers_version".to_owned(), json!(DIFFUSERS_VERSION));
        format!("{:#}\n", Value::Object(file))
    }

    /// The same network with the scheduler of another class, as diffusers' `from_config`: keys that both have keep what the file says,
    /// others take the new class's defaults. How the network was trained stays, also where the new class cannot say it.
    ///
    /// # Errors
    /// When a word of the file means nothing to the new class.
    pub fn switched(&self, class: SchedulerClass) -> Result<Self> {
        SchedulerConfig::read(class, self.said.clone(), Some(self.trained.clone()))
    }

    /// The same network with this sampler.
    ///
    /// # Errors
    /// When a word of the file means nothing to the sampler.
    pub fn with_kind(&self, kind: SamplerKind) -> Result<Self> {
        let mut said = self.said.clone();
        for (key, value) in kind.keys() {
            said.insert(key.to_owned(), value);
        }
        SchedulerConfig::read(kind.class(), said, Some(self.trained.clone()))
    }

    /// The same with another value of a key of its class. How the network was trained stays.
    ///
    /// # Errors
    /// When the class has no such key, or the value is not one of its.
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Result<Self> {
        if !self.class.has(key) {
            return Err(Error::UnknownKey {
                key: key.to_owned(),
                class: self.class.name(),
            });
        }
        let mut said = self.said.clone();
        said.insert(key.to_owned(), value.into());
        SchedulerConfig::read(self.class, said, Some(self.trained.clone()))
    }

    /// The same with another spacing.
    ///
    /// # Errors
    /// When the class has only one.
    pub fn with_spacing(&self, spacing: Spacing) -> Result<Self> {
        let (word, offset) = words_of_spacing(spacing);
        let config = self.with("timestep_spacing", word)?;
        match config.class.has("steps_offset") {
            true => config.with("steps_offset", offset),
            false => Ok(config),
        }
    }

    fn read(
        class: SchedulerClass,
        said: Map<String, Value>,
        trained: Option<Trained>,
    ) -> Result<Self> {
        let keys = Keys { class, said: &said };
        let trained = match trained {
            Some(trained) => trained,
            None => Trained::read(keys)?,
        };
        Ok(SchedulerConfig {
            class,
            solver: Solver::read(keys)?,
            spread: Spread::read(keys)?,
            clip: read_clip(keys)?,
            variance: read_variance(keys)?,
            set_alpha_to_one: read_set_alpha_to_one(keys)?,
            trained,
            said,
        })
    }

    /// The sampler of the file with its walk chosen.
    ///
    /// # Errors
    /// When there are not so many steps, the steps cannot be walked in this order, or the sampler cannot walk them; when it needs
    /// more than noise to begin with, as RePaint does.
    pub fn sampler(&self, choice: &Choice) -> Result<Sampler> {
        match &self.trained {
            Trained::Steps(trained) => self.sampler_of_steps(trained, choice),
            Trained::Edm(trained) => {
                let spread = (trained.sigma_max, trained.sigma_min);
                let levels = self.model_levels(trained.meaning, Clock::LogSigma, spread, choice)?;
                self.sampler_of_levels(levels, choice)
            }
            Trained::Score {
                sigma_min,
                sigma_max,
            } => {
                let ends = (*sigma_max, *sigma_min);
                let mut levels = self.model_levels(Meaning::Score, Clock::Sigma, ends, choice)?;
                if let (Manner::Diffusers, Solver::ScoreSdeVe { least_time, .. }) =
                    (choice.manner, &self.solver)
                {
                    levels = levels.told_by_time(ends, *least_time);
                }
                self.sampler_of_levels(levels.exploding(Spacing::Trailing), choice)
            }
        }
    }

    /// What a walk over `steps` of the steps of training needs, spaced as the file says, by the papers.
    ///
    /// # Errors
    /// When there are not so many steps, or the offset of the file runs over the end; when the network was not trained on steps.
    pub fn process(&self, steps: usize) -> Result<Process> {
        match &self.trained {
            Trained::Steps(trained) => self.walked(trained, &Choice::steps(steps)),
            _ => Err(Error::Inexpressible {
                what: "steps of a network that was trained at any sigma",
            }),
        }
    }

    /// The whole process of training, in the manner and with the clip of the choice: what [`repaint`](crate::repaint) walks.
    ///
    /// # Errors
    /// When the network was not trained on steps.
    pub fn whole_process(&self, choice: &Choice) -> Result<Process> {
        match &self.trained {
            Trained::Steps(trained) => self.training(trained, choice),
            _ => Err(Error::NoSteps {
                class: self.class.name(),
            }),
        }
    }

    fn sampler_of_steps(&self, trained: &TrainedSteps, choice: &Choice) -> Result<Sampler> {
        let manner = choice.manner;
        match &self.solver {
            Solver::Ancestral(variance) => {
                let settings = AncestralSettings {
                    variance: *variance,
                    manner,
                };
                Ok(Sampler::Ancestral(self.walked(trained, choice)?, settings))
            }
            Solver::Ddim | Solver::DdimInverse => {
                let settings = self.landing(trained, choice)?;
                let process = self.walked(trained, choice)?;
                Ok(match self.solver {
                    Solver::Ddim => Sampler::Ddim(process, settings),
                    _ => Sampler::DdimInverse(process, settings),
                })
            }
            Solver::Pndm { skip_prk_steps } => {
                let walked = self.walked(trained, choice)?.schedule;
                let falling = walked.timesteps().rev();
                let times: Vec<usize> = falling.map(|t| walked.network_time(t) as usize).collect();
                let end = self.landing(trained, choice)?.alpha_bar_end;
                let training = self.training(trained, choice)?;
                let plan = PndmPlan::new(&training, &times, *skip_prk_steps, end, manner)?;
                Ok(Sampler::Pndm(plan))
            }
            Solver::RePaint => Err(Error::NeedsImage),
            _ => self.sampler_of_levels(self.levels(trained, choice)?, choice),
        }
    }

    fn sampler_of_levels(&self, levels: Levels, choice: &Choice) -> Result<Sampler> {
        Ok(match &self.solver {
            Solver::Dpm(settings) => Sampler::Dpm(levels, *settings),
            Solver::DpmSinglestep(settings) => Sampler::DpmSinglestep(levels, *settings),
            Solver::UniPc(settings) => Sampler::UniPc(levels, settings.clone()),
            Solver::Deis {
                order,
                lower_order_final,
            } => Sampler::Deis(levels, *order, *lower_order_final),
            Solver::Lms => Sampler::Lms(levels, 4),
            Solver::Euler { .. } => Sampler::Euler(levels),
            Solver::EulerAncestral => Sampler::EulerAncestral(levels),
            Solver::Heun => Sampler::Heun(levels),
            Solver::Kdpm2 => Sampler::Kdpm2(levels),
            Solver::Kdpm2Ancestral => Sampler::Kdpm2Ancestral(levels),
            Solver::ScoreSdeVe {
                snr, corrections, ..
            } => Sampler::ScoreSdeVe(levels, *snr, *corrections),
            // What these come to over levels without steps between them.
            Solver::Ddim if choice.eta == 0.0 => Sampler::Euler(levels),
            Solver::Ddim if choice.eta == 1.0 => Sampler::EulerAncestral(levels),
            Solver::Ancestral(StepVariance::Fixed(Variance::FixedSmall)) => {
                Sampler::EulerAncestral(levels)
            }
            Solver::Pndm { .. } => Sampler::Lms(levels, 4),
            _ => {
                return Err(Error::NoSteps {
                    class: self.class.name(),
                });
            }
        })
    }

    /// The levels of a walk on a schedule of steps.
    fn levels(&self, trained: &TrainedSteps, choice: &Choice) -> Result<Levels> {
        let training = self.training(trained, choice)?;
        let spread = &self.spread;
        let options = LevelChoice {
            steps: 0,
            spacing: spread.spacing,
            curve: spread.curve,
            end: spread.end,
            sigma_min: spread.sigma_min,
            sigma_max: spread.sigma_max,
            lambda_min: spread.lambda_min,
            manner: choice.manner,
        };
        let exploding = matches!(
            self.solver,
            Solver::Lms
                | Solver::Euler { .. }
                | Solver::EulerAncestral
                | Solver::Heun
                | Solver::Kdpm2
                | Solver::Kdpm2Ancestral
                | Solver::ScoreSdeVe { .. }
        );
        let mut levels = match &choice.steps {
            Steps::Number(steps) => {
                let mut options = LevelChoice {
                    steps: *steps,
                    ..options
                };
                let told_log_sigma = Solver::Euler {
                    told_log_sigma: true,
                };
                // diffusers steps from the last of these levels too where times are told as sigmas.
                if spread.curve == Curve::LogLinear
                    && self.solver == told_log_sigma
                    && choice.manner == Manner::Diffusers
                {
                    options.curve = Curve::Exponential;
                    options.steps += 1;
                }
                match self.class {
                    SchedulerClass::EdmEuler
                    | SchedulerClass::EdmDpmSolverMultistep
                    | SchedulerClass::ScoreSdeVe => self.borrowed_levels(&training, options)?,
                    _ if exploding => Levels::of_euler_between(&training, options, spread.whole)?,
                    _ => Levels::of_dpm_solver(&training, options)?,
                }
            }
            Steps::Times(_) if spread.curve != Curve::Trained => {
                return Err(Error::TimesAndCurve { what: "timesteps" });
            }
            Steps::Times(times) => {
                let times: Vec<f64> = times.iter().map(|&time| time as f64).collect();
                Levels::at_times(&training, &times, options)?
            }
            Steps::Sigmas(_) if spread.curve != Curve::Trained => {
                return Err(Error::TimesAndCurve { what: "sigmas" });
            }
            Steps::Sigmas(sigmas) => Levels::at_sigmas(&training, sigmas, choice.manner)?,
        };
        if exploding {
            levels = levels.exploding(spread.spacing);
        }
        if let (Some(rounding), Manner::Diffusers) = (spread.rounding, choice.manner) {
            levels = levels.with_whole_times(rounding);
        }
        if matches!(
            self.solver,
            Solver::Euler {
                told_log_sigma: true
            }
        ) {
            levels = levels.with_log_sigma_times();
        }
        let flows = matches!(spread.curve, Curve::Flow(_) | Curve::KarrasFlow);
        match (trained.flow, flows) {
            (true, true) => Ok(levels.meaning(Meaning::Flow)),
            (true, false) => {
                let expected = "another: without `use_flow_sigmas` there is no flow";
                Err(wrong("prediction_type", "flow_prediction", expected))
            }
            (false, _) => Ok(levels),
        }
    }

    /// The levels that a class for networks without steps asks for, as far as the schedule of training has them.
    fn borrowed_levels(&self, training: &Process, options: LevelChoice) -> Result<Levels> {
        let keys = Keys {
            class: self.class,
            said: &self.said,
        };
        let (low, high) = sigma_range(keys)?;
        let table = Table::new(&training.schedule, options.manner);
        let ends = (high.min(table.last()), low.max(table.first()));
        let sigmas = self.own_curve(ends, options.steps)?;
        Levels::at_sigmas(training, &sigmas, options.manner)
    }

    /// The levels of a network without steps.
    fn model_levels(
        &self,
        meaning: Meaning,
        clock: Clock,
        ends: (f64, f64),
        choice: &Choice,
    ) -> Result<Levels> {
        let sigmas = match &choice.steps {
            Steps::Number(steps) => self.own_curve(ends, *steps)?,
            Steps::Sigmas(sigmas) => sigmas.clone(),
            Steps::Times(_) => {
                return Err(Error::NoSteps {
                    class: self.class.name(),
                });
            }
        };
        let clip = self.clip_for(choice);
        Ok(Levels::of_model(
            meaning,
            clock,
            clip,
            &sigmas,
            choice.manner,
        ))
    }

    /// So many sigmas as a class for networks without steps spreads them, and the end.
    fn own_curve(&self, ends: (f64, f64), steps: usize) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::StepCount {
                asked: 0,
                steps: self.steps(),
                most: self.steps(),
            });
        }
        let geometric =
            self.class == SchedulerClass::ScoreSdeVe || self.spread.curve == Curve::Exponential;
        let mut sigmas = match geometric {
            true => crate::curve::exponential(ends, steps),
            false => karras_with(self.spread.rho, ends, steps),
        };
        sigmas.push(match self.spread.end {
            End::Zero => 0.0,
            End::SigmaMin => ends.1,
            End::Again => sigmas.last().copied().unwrap_or(ends.1),
        });
        Ok(sigmas)
    }

    /// The process of training.
    fn training(&self, trained: &TrainedSteps, choice: &Choice) -> Result<Process> {
        let mut process = Process {
            schedule: trained.schedule_in(choice.manner)?,
            prediction: trained.prediction,
            clip: self.clip_for(choice),
        };
        let on_steps = matches!(
            self.solver,
            Solver::Ancestral(_) | Solver::Ddim | Solver::DdimInverse
        );
        if choice.manner == Manner::Diffusers && on_steps {
            process.divide_by_nothing()?;
        }
        Ok(process)
    }

    /// The process of a walk over some of the steps of training.
    fn walked(&self, trained: &TrainedSteps, choice: &Choice) -> Result<Process> {
        let mut process = self.training(trained, choice)?;
        let schedule = &process.schedule;
        process.schedule = match &choice.steps {
            Steps::Number(steps) if *steps == schedule.steps() => return Ok(process),
            Steps::Number(steps) => schedule.respaced(self.spread.spacing, *steps)?,
            Steps::Times(times) => {
                let all = schedule.steps();
                let whole: Vec<f64> = times.iter().map(|&time| time as f64).collect();
                crate::levels::check_times(&whole, all)?;
                let kept = times.iter().map(|time| schedule.timestep(time + 1));
                let kept = kept.collect::<ddpm_core::Result<Vec<_>>>()?;
                schedule.respaced_at(&kept)?
            }
            Steps::Sigmas(_) => {
                return Err(Error::NoSigmas {
                    class: self.class.name(),
                });
            }
        };
        Ok(process)
    }

    /// DDIM as the file has it.
    fn landing(&self, trained: &TrainedSteps, choice: &Choice) -> Result<DdimSettings> {
        let mut settings = DdimSettings::new(choice.eta);
        let schedule = trained.schedule_in(choice.manner)?;
        if !self.set_alpha_to_one {
            settings.alpha_bar_end = schedule.alpha_bar(schedule.timestep(1)?);
        }
        Ok(match (choice.manner, &choice.steps) {
            (Manner::Diffusers, Steps::Number(steps)) => {
                settings.landing_as_diffusers(&schedule, *steps)
            }
            _ => settings,
        })
    }

    /// DDIM as the file has it, with this `eta`, by the papers.
    ///
    /// # Errors
    /// When the network was not trained on steps.
    pub fn ddim_settings(&self, eta: f64) -> Result<DdimSettings> {
        let choice = Choice {
            eta,
            ..Choice::steps(1)
        };
        match &self.trained {
            Trained::Steps(trained) => self.landing(trained, &choice),
            _ => Ok(DdimSettings::new(eta)),
        }
    }

    fn clip_for(&self, choice: &Choice) -> Clip {
        match &choice.clip {
            Some(clip) if self.class.has("clip_sample") => clip.clone(),
            _ => self.clip.clone(),
        }
    }

    /// The schedule of training; of a network without steps, that of its sigmas.
    ///
    /// # Errors
    /// When the betas make no schedule; not for a configuration that was read or made without an error.
    pub fn schedule(&self) -> Result<Schedule> {
        let (low, high) = match &self.trained {
            Trained::Steps(trained) => return trained.schedule(),
            Trained::Edm(TrainedEdm {
                sigma_min,
                sigma_max,
                ..
            })
            | Trained::Score {
                sigma_min,
                sigma_max,
            } => (*sigma_min, *sigma_max),
        };
        let rising = crate::curve::exponential((low, high), self.steps());
        let alpha_bars = rising.iter().map(|sigma| 1.0 / (1.0 + sigma * sigma));
        Ok(Schedule::from_alpha_bars(&alpha_bars.collect::<Vec<_>>())?)
    }

    /// The scheduler's class.
    pub fn class(&self) -> SchedulerClass {
        self.class
    }

    /// The sampler that the file names.
    pub fn kind(&self) -> SamplerKind {
        match &self.solver {
            Solver::Dpm(_) if self.class == SchedulerClass::EdmDpmSolverMultistep => {
                SamplerKind::EdmDpm
            }
            Solver::Dpm(settings) => match settings.algorithm {
                DpmAlgorithm::Solver => SamplerKind::Dpm,
                DpmAlgorithm::Sde => SamplerKind::DpmSde,
                DpmAlgorithm::SdePlusPlus => SamplerKind::DpmPlusPlusSde,
                DpmAlgorithm::SolverPlusPlus if settings.order == 3 => SamplerKind::DpmPlusPlus3,
                DpmAlgorithm::SolverPlusPlus => SamplerKind::DpmPlusPlus,
            },
            Solver::DpmSinglestep(_) => SamplerKind::DpmPlusPlusSingle,
            Solver::Pndm {
                skip_prk_steps: true,
            } => SamplerKind::Plms,
            _ => {
                let mut kinds = SamplerKind::all();
                let own = kinds.find(|kind| kind.class() == self.class);
                own.unwrap_or(SamplerKind::Ddim)
            }
        }
    }

    /// The number of steps of training T.
    pub fn steps(&self) -> usize {
        match &self.trained {
            Trained::Steps(trained) => trained.steps,
            _ => {
                let said = self.said.get("num_train_timesteps").and_then(Value::as_u64);
                said.and_then(|n| usize::try_from(n).ok()).unwrap_or(1000)
            }
        }
    }

    /// The betas as the file says them, before any rescaling; none for a network without steps.
    pub fn betas(&self) -> Option<&Betas> {
        match &self.trained {
            Trained::Steps(trained) => Some(&trained.betas),
            _ => None,
        }
    }

    /// Whether the betas are rescaled to zero terminal SNR.
    pub fn zero_terminal_snr(&self) -> bool {
        matches!(&self.trained, Trained::Steps(trained) if trained.zero_terminal_snr)
    }

    /// Why diffusers cannot sample with this file, in words for whoever opens it; `None` when it can.
    pub fn beyond_diffusers(&self) -> Option<&'static str> {
        match self.prediction() {
            Some(Prediction::PosteriorMean) => Some(
                "the network predicts posterior means, for which diffusers has no prediction_type",
            ),
            _ => None,
        }
    }

    /// What the network outputs, if it was trained on steps.
    pub fn prediction(&self) -> Option<Prediction> {
        match &self.trained {
            Trained::Steps(trained) => Some(trained.prediction),
            _ => None,
        }
    }

    /// The variance of ancestral sampling.
    pub fn variance(&self) -> StepVariance {
        self.variance
    }

    /// How x_0-hat is clipped.
    pub fn clip(&self) -> Clip {
        self.clip.clone()
    }

    /// Which steps a shorter walk keeps.
    pub fn spacing(&self) -> Spacing {
        self.spread.spacing
    }
}

fn words_of_betas(betas: &Betas) -> Map<String, Value> {
    let (word, start, end) = match betas {
        Betas::Linear { start, end } => ("linear", *start, *end),
        Betas::ScaledLinear { start, end } => ("scaled_linear", *start, *end),
        Betas::Sigmoid { start, end } => ("sigmoid", *start, *end),
        Betas::Cosine => ("squaredcos_cap_v2", BETA_START, BETA_END),
        Betas::Laplace => ("laplace", BETA_START, BETA_END),
        Betas::Exponential => ("exp", BETA_START, BETA_END),
        Betas::Trained(_) => ("linear", BETA_START, BETA_END),
    };
    let mut words = Map::new();
    words.insert("beta_schedule".to_owned(), json!(word));
    words.insert("beta_start".to_owned(), json!(start));
    words.insert("beta_end".to_owned(), json!(end));
    if let Betas::Trained(betas) = betas {
        words.insert("trained_betas".to_owned(), json!(betas));
    }
    words
}

fn word_of(prediction: Prediction) -> Option<&'static str> {
    let mut words = PREDICTIONS.iter();
    words.find(|(_, p)| *p == prediction).map(|(word, _)| *word)
}

fn read_clip(keys: Keys) -> Result<Clip> {
    let range = keys.number("clip_sample_range")?.unwrap_or(1.0);
    check_range(range)?;
    if keys.flag("thresholding")? {
        let within = |ratio: f64| (0.0..=1.0).contains(&ratio);
        let ratio = keys.number_in(
            "dynamic_thresholding_ratio",
            0.995,
            within,
            "a number in 0..=1",
        )?;
        let right = |most: f64| most > 0.0 && most.is_finite();
        let most = keys.number_in("sample_max_value", 1.0, right, "a finite number above 0")?;
        return Ok(Clip::Dynamic { ratio, most });
    }
    match keys.flag("clip_sample")? {
        true => Ok(Clip::Range(range)),
        false => Ok(Clip::None),
    }
}

/// Also where the class that is read keeps it for another, as it was written in files of ours.
fn read_set_alpha_to_one(keys: Keys) -> Result<bool> {
    match keys
        .value("set_alpha_to_one")
        .or(keys.said.get("set_alpha_to_one").cloned())
    {
        None => Ok(true),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| wrong("set_alpha_to_one", &value, "true or false")),
    }
}

/// JSON has no infinity and no NaN: they would be written as null, which is read as the default.
fn check_range(range: f64) -> Result<()> {
    match range > 0.0 && range.is_finite() {
        true => Ok(()),
        false => Err(wrong("clip_sample_range", range, "a finite number above 0")),
    }
}
