//! A run on disk: `RUN/run.toml`, `metrics.jsonl`, `samples/`, `checkpoints/`; begun, continued, and kept whole.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ddpm_checkpoint::{
    Checkpoint, Newest, Pipeline, RunLock, Skipped, keep_last, make_folder, newest_whole,
    read_run_toml, read_train_state, write_checkpoint,
};
use ddpm_data::{Splits, load_with};
use ddpm_image::{Picture, PixelMap, sheet};
use ddpm_unet::Place;
use toml::Table;

use crate::durable::replace_file;
use crate::events::Events;
use crate::report::{self, Counts, Evidence, Samples, newest_network};
use crate::samples::{film, write_sheet};
use crate::state::counter;
use crate::{
    Decay, Error, HeldOut, Init, Layer, Metrics, MetricsLine, Objective, Report, Result, Settings,
    Trainer, memory, scheduler,
};

/// A training with its folder. [`Run::advance`] makes a step and writes what is due; nothing is written in between.
pub struct Run {
    folder: PathBuf,
    run_toml: String,
    trainer: Trainer,
    held_out: Option<HeldOut>,
    metrics: Metrics,
    /// What TensorBoard shows, where that is asked for.
    events: Option<Events>,
    /// The samples of the last step, for the report.
    samples: Option<Samples>,
    /// Seconds of training in earlier processes and since.
    seconds: f64,
    since_line: (f64, u64),
    /// The newest checkpoint that is known to be whole.
    saved: Option<Checkpoint>,
    /// The disk refuses the metrics, and that has been said.
    metrics_refused: bool,
    /// The same of the event file.
    events_refused: bool,
    /// Nobody else trains this run.
    _lock: RunLock,
    /// Pictures of the data set that were left out.
    skipped: Vec<ddpm_data::Skipped>,
}

/// Steps that a card makes without being waited for.
const AHEAD: usize = 32;

/// What [`Run::advance`] did.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The step.
    pub report: Report,
    /// The held-out loss, where it was due.
    pub held_out_loss: Option<f64>,
    /// The picture that was made.
    pub picture: Option<PathBuf>,
    /// The checkpoint that was written.
    pub checkpoint: Option<PathBuf>,
    /// What could not be written and why, in sentences; the training goes on, and nothing of it is lost.
    pub warnings: Vec<String>,
    /// Nothing is left to do.
    pub last: bool,
}

/// What is known of a run on disk before it is continued.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its settings.
    pub settings: Settings,
    /// The preset it was started from.
    pub preset: Option<String>,
    /// SHA-256 of its training images.
    pub data_sha256: String,
    /// The model that it began from, in words.
    pub init: Option<String>,
    /// The newest checkpoint, where the run has lost its `run.toml` and all this comes from there.
    pub from_checkpoint: Option<PathBuf>,
}

impl Recorded {
    /// Reads `run.toml` of a run, or, where that is lost (not there, or emptied by a power cut), the one in its newest
    /// whole checkpoint.
    ///
    /// # Errors
    /// There is neither, or it is not one of ours.
    pub fn read(folder: &Path) -> Result<Self> {
        let from_checkpoint = if !is_lost(&folder.join("run.toml")) {
            None
        } else {
            let newest = newest_if_any(folder)?.checkpoint;
            Some(newest.ok_or_else(|| Error::NoRun(folder.into()))?.path)
        };
        let recorded_in = from_checkpoint.as_deref().unwrap_or(folder);
        let mut table = read_run_toml(recorded_in)?;
        let run = table
            .remove("run")
            .and_then(|v| v.try_into::<Table>().ok())
            .unwrap_or_default();
        let text = |key: &str| run.get(key).and_then(toml::Value::as_str).map(String::from);
        let place = recorded_in.join("run.toml").display().to_string();
        let data_sha256 = text("data_sha256").ok_or_else(|| Error::State {
            place: place.clone(),
            problem: "`run.data_sha256` is missing".into(),
        })?;
        let settings = Settings::from_layers(&[Layer::from_text(&place, &table.to_string())?])?;
        Ok(Self {
            settings,
            preset: text("preset"),
            init: text("init"),
            data_sha256,
            from_checkpoint,
        })
    }
}

impl Run {
    /// Begins a run in a folder that holds none. `settings` must be [resolved](Settings::resolved).
    ///
    /// # Errors
    /// The folder holds a run; settings or data are refused; the folder cannot be written. Nothing is trained before
    /// all of this is known.
    pub fn begin(folder: &Path, settings: &Settings, preset: Option<&str>) -> Result<Self> {
        Self::begin_with(folder, settings, preset, None)
    }

    /// As [`Run::begin`], with the weights of a trained model; optimiser and averages are new. `settings` must have
    /// its [`Init::layer`]. There is a checkpoint before the first step, from which the run can be resumed.
    pub fn begin_from(
        folder: &Path,
        settings: &Settings,
        preset: Option<&str>,
        init: &Init,
    ) -> Result<Self> {
        init.check(settings)?;
        let mut run = Self::begin_with(folder, settings, preset, Some(init))?;
        run.save()?;
        Ok(run)
    }

    fn begin_with(
        folder: &Path,
        settings: &Settings,
        preset: Option<&str>,
        init: Option<&Init>,
    ) -> Result<Self> {
        let exists = || Error::RunExists(folder.into());
        if holds_a_run(folder) {
            return Err(exists());
        }
        let mut splits = read_data(settings)?;
        let skipped = std::mem::take(&mut splits.skipped);
        let from = Origin {
            preset,
            data_sha256: &splits.train.sha256(),
            init: init.map(Init::story),
            skipped: &skipped,
        };
        let run_toml = run_toml(settings, &from)?;
        let (trainer, held_out) = prepare(settings, splits, init)?;
        make_folder(folder).map_err(|e| Error::io("make the folder", folder, e))?;
        let lock = RunLock::take(folder)?;
        // Another process may have begun it while this one read its data.
        if holds_a_run(folder) {
            return Err(exists());
        }
        write_run_toml(folder, &run_toml)?;
        let mut run = Self::open(folder, run_toml, trainer, held_out, 0.0, lock)?;
        run.skipped = skipped;
        Ok(run)
    }

    /// Continues a run from its newest whole checkpoint, or from the beginning where it has none yet; also returns
    /// the newer checkpoints that are not whole. `settings` are the recorded ones with what is to change.
    ///
    /// # Errors
    /// A setting differs that would make it another run, the data is other data, the checkpoint does not fit, or
    /// nothing is left to do.
    pub fn resume(folder: &Path, settings: &Settings) -> Result<(Self, Vec<Skipped>)> {
        let recorded = Recorded::read(folder)?;
        let lock = RunLock::take(folder)?;
        if let Some((key, was, now)) = recorded.settings.first_forbidden_change(settings)? {
            return Err(Error::ResumeDiffers { key, was, now });
        }
        let mut splits = read_data(settings)?;
        let left_out = std::mem::take(&mut splits.skipped);
        let now = splits.train.sha256();
        if now != recorded.data_sha256 {
            return Err(Error::DataDiffers {
                run: folder.display().to_string(),
                name: settings.data.name.clone(),
                was: recorded.data_sha256,
                now,
            });
        }
        let from = Origin {
            preset: recorded.preset.as_deref(),
            data_sha256: &now,
            init: recorded.init.as_deref(),
            skipped: &left_out,
        };
        let run_toml = run_toml(settings, &from)?;
        let newest = newest_if_any(folder)?;
        if let (Some(init), None) = (&recorded.init, &newest.checkpoint) {
            return Err(Error::State {
                place: folder.display().to_string(),
                problem: format!(
                    "it began from a model ({init}) and was stopped before its first checkpoint; remove it and begin again"
                ),
            });
        }
        let (mut trainer, held_out) = prepare(settings, splits, None)?;
        let mut seconds = 0.0;
        if let Some(checkpoint) = &newest.checkpoint {
            let state = read_train_state(&checkpoint.path)?;
            seconds = counter(
                &state.counters,
                "seconds",
                &checkpoint.path.display().to_string(),
            )?;
            trainer.load_state(state, &checkpoint.path)?;
        }
        if is_finished(settings, trainer.steps_done(), seconds) {
            return Err(at_its_end(folder, settings, trainer.steps_done()));
        }
        write_run_toml(folder, &run_toml)?;
        let mut run = Self::open(folder, run_toml, trainer, held_out, seconds, lock)?;
        run.saved = newest.checkpoint;
        run.skipped = left_out;
        Ok((run, newest.skipped))
    }

    /// Whether the steps or the minutes are used up.
    pub fn finished(&self) -> bool {
        let settings = self.trainer.settings();
        is_finished(settings, self.trainer.steps_done(), self.seconds)
    }

    /// Makes one step, then writes the metrics, the picture and the checkpoint that are due; at the last step all are. On a
    /// card it is several steps where `train.log_every` lets them go unwaited for; what is returned is of the last.
    ///
    /// What the disk refuses is a warning: to stop would give up the steps since the last checkpoint, and by the next one
    /// there may be room again. Lines of metrics are kept until then. At the last step there is no later: what is refused
    /// then is an error, except a picture, which `ddpm-sample` can draw.
    ///
    /// # Errors
    /// Training broke down, or the last checkpoint cannot be written. Checkpoints written before stay as they are.
    pub fn advance(&mut self) -> Result<Progress> {
        let started = Instant::now();
        let before = self.seconds;
        let report = match self.trainer.place().plans() {
            true => self.trainer.step()?,
            false => self.steps_ahead(started)?,
        };
        if self.trainer.place().plans() || self.is_looked_at(report.step) {
            // Here, where the step and its images are known; later it would be a picture that cannot be made.
            self.trainer.check_weights()?;
        }
        self.seconds = before + started.elapsed().as_secs_f64();
        let last = self.finished();
        let (train, samples) = (
            &self.trainer.settings().train,
            &self.trainer.settings().samples,
        );
        let (log_every, checkpoint_every) = (train.log_every, train.checkpoint_every);
        let histograms_every = train.histograms_every;
        let due = |every: usize| last || every > 0 && report.step.is_multiple_of(every);
        let picture_due = samples.count > 0 && due(samples.every);
        let held_out_loss = if due(train.held_out_every) {
            self.held_out_loss()?
        } else {
            None
        };
        let mut warnings = Vec::new();
        if due(log_every) || held_out_loss.is_some() {
            let line = self.line(&report, held_out_loss);
            let written = self.metrics.write(&line);
            warnings.extend(self.metrics_news(written)?);
            warnings.extend(self.show(|events, _| events.numbers(&line))?);
        }
        if histograms_every > 0 && due(histograms_every) {
            warnings.extend(self.show(Events::histograms)?);
        }
        let picture = match picture_due {
            true => self.write_picture(last, &mut warnings)?,
            false => None,
        };
        self.seconds = before + started.elapsed().as_secs_f64();
        if due(checkpoint_every) {
            warnings.extend(self.show(|events, _| events.sync())?);
        }
        let mut checkpoint = None;
        if last {
            checkpoint = Some(self.save()?);
        } else if due(checkpoint_every) {
            let synced = self.metrics.sync();
            warnings.extend(self.metrics_news(synced)?);
            let saved = self.save_checkpoint();
            let kept = match self.newest_checkpoint() {
                Some(path) => format!("{} is kept", path.display()),
                None => "there is none yet".to_owned(),
            };
            let so = format!("there is no checkpoint of this step, {kept}");
            checkpoint = self.unless_refused(saved, &so, &mut warnings)?;
        }
        self.seconds = before + started.elapsed().as_secs_f64();
        Ok(Progress {
            report,
            held_out_loss,
            picture,
            checkpoint,
            warnings,
            last,
        })
    }

    /// Makes steps until one is due to be told of, and waits for them: a card then has work while the host prepares the next.
    /// At most [`AHEAD`] of them, and none after a second, so that nobody who wants to stop waits long.
    fn steps_ahead(&mut self, started: Instant) -> Result<Report> {
        let before = self.seconds;
        loop {
            self.trainer.step_ahead()?;
            let (step, (ahead, waiting)) = (self.trainer.steps_done(), self.trainer.unread());
            self.seconds = before + started.elapsed().as_secs_f64();
            let train = &self.trainer.settings().train;
            let told = step.is_multiple_of(train.log_every.max(1));
            if told || self.is_looked_at(step) || self.finished() || ahead >= AHEAD || waiting > 1.0
            {
                break;
            }
        }
        let last = self.trainer.read()?.pop();
        last.ok_or_else(|| candle_core::Error::Msg("no step was made".into()).into())
    }

    /// Whether weights are looked at after this step: drawn, measured or written.
    fn is_looked_at(&self, step: usize) -> bool {
        let (train, samples) = (
            &self.trainer.settings().train,
            &self.trainer.settings().samples,
        );
        let histograms = match train.tensorboard {
            true => train.histograms_every,
            false => 0,
        };
        [
            train.checkpoint_every,
            train.held_out_every,
            histograms,
            samples.every,
        ]
        .into_iter()
        .any(|every| every > 0 && step.is_multiple_of(every))
            || self.finished()
    }

    /// Turns what the disk refused into a warning that says what follows.
    fn unless_refused(
        &self,
        done: Result<PathBuf>,
        so: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Option<PathBuf>> {
        match done {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.is_the_disks() => {
                let step = self.trainer.steps_done();
                warnings.push(format!("step {step}: {error}: {so}; training goes on"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What is to be said of the metrics: once when the disk refuses them, once when it takes them again.
    fn metrics_news(&mut self, written: Result<()>) -> Result<Option<String>> {
        let told = News {
            refused: "the metrics are kept until it can be written",
            again: "the metrics can be written again, those kept so far too",
        };
        let step = self.trainer.steps_done();
        told.of(written, step, &mut self.metrics_refused)
    }

    /// Shows something on TensorBoard, if it is used; returns what is to be said, as of the metrics.
    fn show(
        &mut self,
        put: impl FnOnce(&mut Events, &Trainer) -> Result<()>,
    ) -> Result<Option<String>> {
        let Some(events) = &mut self.events else {
            return Ok(None);
        };
        let written = put(events, &self.trainer);
        let told = News {
            refused: "TensorBoard misses what it would show until it can be written",
            again: "what TensorBoard shows can be written again",
        };
        let step = self.trainer.steps_done();
        told.of(written, step, &mut self.events_refused)
    }

    /// Writes a checkpoint of this moment, if there is none yet, and removes those that are too many.
    ///
    /// # Errors
    /// A weight is not finite, so that the last good checkpoint stays the newest; or the disk refuses. Where it refuses
    /// only the metrics, the checkpoint is there nevertheless.
    pub fn save(&mut self) -> Result<PathBuf> {
        let metrics = self.metrics.sync();
        let path = self.save_checkpoint()?;
        metrics.map(|()| path)
    }

    fn save_checkpoint(&mut self) -> Result<PathBuf> {
        let step = self.trainer.steps_done() as u64;
        if let Some(saved) = self.saved.as_ref().filter(|saved| saved.step == step) {
            return Ok(saved.path.clone());
        }
        self.trainer.check_weights()?;
        let scheduler = scheduler(
            self.trainer.objective(),
            &self.trainer.settings().diffusion,
            self.trainer.pixels(),
        )?;
        let mut pipeline = Pipeline::new(
            self.trainer.config().clone(),
            self.trainer.best_weights(),
            scheduler,
        );
        if *self.trainer.pixels() != PixelMap::MinusOneToOne {
            pipeline.beyond_diffusers.push(PER_CHANNEL.to_owned());
        }
        let mut state = self.trainer.state();
        state
            .counters
            .insert("seconds".into(), self.seconds.to_string());
        let path = write_checkpoint(&self.folder, step, &pipeline, &state, &self.run_toml)?;
        self.saved = Some(Checkpoint {
            step,
            path: path.clone(),
        });
        keep_last(&self.folder, self.trainer.settings().train.keep_last)?;
        Ok(path)
    }

    /// Writes `report.html`: what the run has come to, on one page that opens without a server, with `loss.png` and pictures
    /// in `samples/` beside it. Returns the page's path.
    ///
    /// # Errors
    /// A file cannot be written; those that are there are whole.
    pub fn report(&self) -> Result<PathBuf> {
        let trainer = &self.trainer;
        let (settings, data, pixels) = (trainer.settings(), trainer.data(), trainer.pixels());
        let samples = match &self.samples {
            Some(samples) => Some(samples.clone()),
            None => {
                let network = trainer.sampling_network()?;
                report::samples(trainer.objective(), &network, settings, (data, pixels))?
            }
        };
        let evidence = Evidence {
            folder: &self.folder,
            settings,
            run: section_run(&self.run_toml),
            objective: trainer.objective(),
            data,
            pixels,
            held_out: held_out_pictures(self.held_out.as_ref(), settings, pixels)?,
            samples,
            counts: Counts {
                step: trainer.steps_done() as u64,
                images: trainer.images_done(),
                seconds: self.seconds,
                parameters: trainer.config().parameter_count(),
                checkpoint: self.newest_checkpoint().map(Path::to_path_buf),
            },
        };
        report::write(&evidence)
    }

    /// The newest checkpoint that was written, or that the run was continued from.
    pub fn newest_checkpoint(&self) -> Option<&Path> {
        self.saved.as_ref().map(|saved| saved.path.as_path())
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The training itself.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The pictures of the data set that could not be read and were left out, as `data.skip_unreadable` allows.
    pub fn skipped(&self) -> &[ddpm_data::Skipped] {
        &self.skipped
    }

    /// Seconds of training, over every resume.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    fn open(
        folder: &Path,
        run_toml: String,
        trainer: Trainer,
        held_out: Option<HeldOut>,
        seconds: f64,
        lock: RunLock,
    ) -> Result<Self> {
        let metrics = Metrics::open_at(&folder.join("metrics.jsonl"), trainer.steps_done())?;
        let events = match trainer.settings().train.tensorboard {
            true => Some(Events::open_at(folder, trainer.steps_done())?),
            false => None,
        };
        let since_line = (seconds, trainer.images_done());
        Ok(Self {
            folder: folder.into(),
            run_toml,
            trainer,
            held_out,
            metrics,
            events,
            samples: None,
            seconds,
            since_line,
            saved: None,
            metrics_refused: false,
            events_refused: false,
            _lock: lock,
            skipped: Vec::new(),
        })
    }

    fn held_out_loss(&self) -> Result<Option<f64>> {
        let Some(held_out) = &self.held_out else {
            return Ok(None);
        };
        held_out
            .loss(self.trainer.objective(), &self.trainer.sampling_network()?)
            .map(Some)
    }

    fn line(&mut self, report: &Report, held_out_loss: Option<f64>) -> MetricsLine {
        let (seconds, images) = self.since_line;
        let images_per_second =
            (report.images - images) as f64 / (self.seconds - seconds).max(1e-9);
        self.since_line = (self.seconds, report.images);
        MetricsLine::new(report, images_per_second, held_out_loss)
    }

    /// Draws samples, those of the last step also for the report, and writes and shows them.
    fn write_picture(&mut self, last: bool, warnings: &mut Vec<String>) -> Result<Option<PathBuf>> {
        let step = self.trainer.steps_done();
        let path = self.folder.join(format!("samples/step-{step:08}.png"));
        let (settings, data) = (&self.trainer.settings().samples, self.trainer.data());
        let network = self.trainer.sampling_network()?;
        let shape = (data.channels(), data.height(), data.width());
        let (objective, pixels) = (self.trainer.objective(), self.trainer.pixels());
        let samples = film(objective, &network, settings, pixels, shape)?;
        let sheet = sheet(&samples.pictures)?;
        let written = write_sheet(settings, &sheet, &path).map(|()| path);
        self.samples = last.then_some(samples);
        let written = self.unless_refused(written, "there is no picture of this step", warnings)?;
        warnings.extend(self.show(|events, _| events.picture(step, &sheet))?);
        Ok(written)
    }
}

/// What is said once when the disk refuses a file, and once when it takes it again.
struct News {
    refused: &'static str,
    again: &'static str,
}

impl News {
    /// The news of a write at `step`, where there are any; `refused`: whether the one before was refused.
    fn of(&self, written: Result<()>, step: usize, refused: &mut bool) -> Result<Option<String>> {
        let before = *refused;
        match written {
            Ok(()) => {
                *refused = false;
                Ok(before.then(|| format!("step {step}: {}", self.again)))
            }
            Err(error) if error.is_the_disks() => {
                *refused = true;
                let news = format!("step {step}: {error}: {}; training goes on", self.refused);
                Ok((!before).then_some(news))
            }
            Err(error) => Err(error),
        }
    }
}

/// Writes the report of a run on disk from its newest whole checkpoint, as [`Run::report`] does.
///
/// # Errors
/// There is no such run or checkpoint, its data is not there any more or is other data, or a file cannot be written.
pub fn report_on(folder: &Path) -> Result<PathBuf> {
    let recorded = Recorded::read(folder)?;
    let settings = &recorded.settings;
    let (network, counts) = newest_network(folder)?;
    let splits = read_data(settings)?;
    let now = splits.train.sha256();
    if now != recorded.data_sha256 {
        return Err(Error::DataDiffers {
            run: folder.display().to_string(),
            name: settings.data.name.clone(),
            was: recorded.data_sha256,
            now,
        });
    }
    let objective = Objective::new(&settings.diffusion)?;
    let pixels = settings.data.normalisation.pixel_map()?;
    let test = splits.test.filter(|_| settings.train.held_out_images > 0);
    let count = settings.train.held_out_images;
    let held_out = test.map(|test| HeldOut::new(&objective, &test, &pixels, count, count));
    let place = recorded.from_checkpoint.as_deref().unwrap_or(folder);
    report::write(&Evidence {
        folder,
        settings,
        run: section_run(&read_run_toml(place)?.to_string()),
        objective: &objective,
        data: &splits.train,
        pixels: &pixels,
        held_out: held_out_pictures(held_out.transpose()?.as_ref(), settings, &pixels)?,
        samples: report::samples(&objective, &network, settings, (&splits.train, &pixels))?,
        counts,
    })
}

/// As many as there are samples.
fn held_out_pictures(
    held_out: Option<&HeldOut>,
    settings: &Settings,
    pixels: &PixelMap,
) -> Result<Vec<Picture>> {
    match held_out {
        Some(held_out) => held_out.pictures(settings.samples.count, pixels),
        None => Ok(Vec::new()),
    }
}

/// The section `run` of a `run.toml`.
fn section_run(run_toml: &str) -> Table {
    let table = run_toml.parse::<Table>().unwrap_or_default();
    let run = table.get("run").and_then(toml::Value::as_table);
    run.cloned().unwrap_or_default()
}

/// Why diffusers' pipeline would show other colours.
pub(crate) const PER_CHANNEL: &str = "The images are normalised per channel (`run.pixels` in run.toml): diffusers' pipelines only \
     know [-1, 1] and would show them in wrong colours.";

fn is_finished(settings: &Settings, steps_done: usize, seconds: f64) -> bool {
    let train = &settings.train;
    train.steps.is_some_and(|steps| steps_done >= steps)
        || train
            .minutes
            .is_some_and(|minutes| seconds >= 60.0 * minutes)
}

/// Not there, or empty or all zeros as a power cut leaves files. What cannot be read is not lost.
fn is_lost(file: &Path) -> bool {
    match std::fs::read(file) {
        Ok(bytes) => bytes.iter().all(|byte| *byte == 0),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn holds_a_run(folder: &Path) -> bool {
    ["run.toml", "metrics.jsonl", "checkpoints"]
        .iter()
        .any(|name| folder.join(name).exists())
}

/// The newest whole checkpoint, if there is any at all. Where there are only broken ones, to begin again would throw
/// away what a person may still save.
fn newest_if_any(folder: &Path) -> Result<Newest> {
    let newest = newest_whole(folder)?;
    if newest.checkpoint.is_none() && !newest.skipped.is_empty() {
        return Err(ddpm_checkpoint::Error::NoWholeCheckpoint {
            run: folder.into(),
            skipped: newest.skipped,
        }
        .into());
    }
    Ok(newest)
}

pub(crate) fn read_data(settings: &Settings) -> Result<Splits> {
    settings.check()?;
    let spec = settings.data_spec()?;
    let data = &settings.data;
    Ok(load_with(
        &spec,
        data.directory.as_deref(),
        &data.pictures(),
        &data.keep(),
    )?)
}

fn prepare(
    settings: &Settings,
    splits: Splits,
    init: Option<&Init>,
) -> Result<(Trainer, Option<HeldOut>)> {
    let data = &splits.train;
    let size = (data.channels(), data.height(), data.width());
    if let Some(init) = init {
        init.check_channels(size.0, data.name())?;
    }
    settings.check_data(data.len(), size)?;
    let config = settings.unet_config(size.0, size.1, size.2)?;
    let place = Place::open(settings.train.device)?;
    memory::check(&place, settings, &config, (size.1, size.2))?;
    let trainer = match init {
        Some(init) => {
            let weights = init.weights().to_vec();
            Trainer::with_weights_at(place, settings, splits.train, weights)?
        }
        None => Trainer::new_at(place, settings, splits.train)?,
    };
    let train = &settings.train;
    let test = splits.test.filter(|_| train.held_out_images > 0);
    let at_once = train.micro_batch.unwrap_or(train.batch_size);
    let held_out = test.map(|test| {
        let count = train.held_out_images;
        HeldOut::new(trainer.objective(), &test, trainer.pixels(), count, at_once)
    });
    Ok((trainer, held_out.transpose()?))
}

/// Where a run comes from.
struct Origin<'a> {
    preset: Option<&'a str>,
    data_sha256: &'a str,
    init: Option<&'a str>,
    skipped: &'a [ddpm_data::Skipped],
}

fn at_its_end(folder: &Path, settings: &Settings, steps_done: usize) -> Error {
    match settings.optimizer.decay_steps {
        Some(steps) if settings.optimizer.decay != Decay::Constant && steps_done >= steps => {
            Error::Decayed {
                folder: folder.display().to_string(),
                steps,
            }
        }
        _ => Error::Finished(folder.into()),
    }
}

/// The settings, and where they come from: what `RUN/run.toml` and every checkpoint record.
fn run_toml(settings: &Settings, from: &Origin<'_>) -> Result<String> {
    let mut run = Table::new();
    run.insert(
        "program".into(),
        concat!("ddpm-train ", env!("CARGO_PKG_VERSION")).into(),
    );
    if let Some(preset) = from.preset {
        run.insert("preset".into(), preset.into());
    }
    if let Some(init) = from.init {
        run.insert("init".into(), init.into());
    }
    run.insert("data_sha256".into(), from.data_sha256.into());
    if !from.skipped.is_empty() {
        run.insert("skipped".into(), left_out(from.skipped).into());
    }
    let pixels = settings.data.normalisation.pixel_map()?;
    let pixels = toml::Value::try_from(pixels).map_err(|e| Error::Layer {
        place: "data.normalisation".into(),
        problem: e.to_string(),
    })?;
    run.insert("pixels".into(), pixels);
    let mut table = settings.to_table()?;
    table.insert("run".into(), run.into());
    Ok(format!(
        "# Written by ddpm-train: all settings of this run. `--resume` reads them.\n{table}"
    ))
}

/// The pictures that could not be read: how many, and the first of them with the reason of each.
fn left_out(skipped: &[ddpm_data::Skipped]) -> Table {
    const NAMED: usize = 100;
    let named = skipped.iter().take(NAMED);
    let named: Vec<toml::Value> = named.map(|one| one.to_string().into()).collect();
    Table::from_iter([
        ("pictures".into(), (skipped.len() as i64).into()),
        ("first".into(), named.into()),
    ])
}

/// The settings first, so that whatever else is in the folder can be resumed.
fn write_run_toml(folder: &Path, text: &str) -> Result<()> {
    let make = |made: &Path| make_folder(made).map_err(|e| Error::io("make the folder", made, e));
    make(folder)?;
    replace_file(&folder.join("run.toml"), text.as_bytes())?;
    make(&folder.join("samples"))?;
    make(&folder.join("checkpoints"))
}
