//! The program: flags -> validated request -> library -> printed result.

mod environment;
mod failure;
mod flags;
mod progress;
mod request;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use clap::Parser;
use ddpm_data::{Dataset, Feed, Skipped, load_with};
use ddpm_image::{Picture, sheet, write_png};
use ddpm_train::{
    PRESETS, Progress, Run, Stored, export, memory_available, memory_needed, on_threads, report_on,
};
use ddpm_unet::{Place, Precision};
use failure::{FAILED, Failure, WRONG_USAGE, go_on};
use flags::{Dtype, Flags, NOTHING_TYPED};
use progress::{Display, say};
use request::{Request, run_folder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ctrl-C or SIGTERM came: finish the step, save, leave.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const STOPPED: u8 = 130;

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        say(NOTHING_TYPED);
        return ExitCode::from(WRONG_USAGE);
    }
    let flags = Flags::parse();
    let outcome = if flags.list_presets {
        list_presets()
    } else if let Some(folder) = &flags.export {
        export_model(&flags, folder)
    } else if let Some(folder) = &flags.report {
        report(&flags, folder)
    } else {
        train(&flags)
    };
    outcome.unwrap_or_else(|failure| {
        say(&format!("error: {}", failure.text));
        ExitCode::from(failure.status)
    })
}

fn list_presets() -> Result<ExitCode, Failure> {
    for preset in PRESETS {
        print(&format!(
            "{}\n    {}",
            preset.name,
            preset.headline().replace('\n', "\n    ")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn train(flags: &Flags) -> Result<ExitCode, Failure> {
    if flags.dtype.is_some() {
        return Err(Failure::usage("--dtype only goes with --export"));
    }
    if flags.weights.is_some() && flags.init.is_none() {
        return Err(Failure::usage(
            "--weights only goes with --init and --export",
        ));
    }
    let from_a_model = flags.init.is_some() && flags.data.is_some();
    if flags.preset.is_none() && flags.config.is_none() && !flags.resume && !from_a_model {
        return Err(Failure::usage(
            "say what to train: --preset NAME (--list-presets shows them) or --config FILE",
        ));
    }
    let request = Request::new(flags)?;
    if !flags.dry_run {
        environment::settle(request.settings.train.threads);
    }
    if let Some(checkpoint) = &request.settings_from {
        say(&format!(
            "warning: `{}` has lost its run.toml; its settings are those of {}",
            request.folder.display(),
            checkpoint.display()
        ));
    }
    if flags.dry_run {
        return dry_run(&request);
    }
    let quiet = flags.quiet;
    let watched = ctrlc::set_handler(move || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            // The second time there is no waiting for the step.
            say("stopped at once, without saving; --resume goes on from the newest checkpoint");
            std::process::exit(STOPPED.into());
        }
        if !quiet {
            say("saves and stops after this step; Ctrl-C once more stops at once, without saving");
        }
    });
    watched.map_err(|e| Failure {
        text: format!("cannot listen for Ctrl-C: {e}"),
        status: FAILED,
    })?;
    on_threads(request.settings.train.threads, || {
        run(&request, flags.quiet)
    })?
}

/// Writes the model of a run to a folder of its own, and says what it is.
fn export_model(flags: &Flags, folder: &Path) -> Result<ExitCode, Failure> {
    let run = run_folder(flags)?;
    let threads = flags.threads.unwrap_or(0);
    environment::settle(threads);
    let stored = match flags.dtype {
        Some(Dtype::F32) => Stored::F32,
        Some(Dtype::F16) | None => Stored::F16,
    };
    let weights = flags.weights.clone().unwrap_or_default();
    let exported = on_threads(threads, || export(&run, folder, &weights, stored))??;
    if !flags.quiet {
        let loss = match &exported.held_out_loss {
            Ok(loss) => format!("{loss:.5}"),
            Err(why) => format!("not measured: {why}"),
        };
        print(&format!("from           {}", exported.checkpoint.display()));
        print(&format!("model          {}", folder.display()));
        print(&format!("weights        {} bytes", exported.bytes));
        print(&format!("held-out loss  {loss}"));
        print(&match &exported.picture {
            Ok(picture) => format!("picture        {}", picture.display()),
            Err(why) => format!("picture        none: {why}"),
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// The report of a run on disk, and where it is.
fn report(flags: &Flags, folder: &Path) -> Result<ExitCode, Failure> {
    let threads = flags.threads.unwrap_or(0);
    environment::settle(threads);
    let page = on_threads(threads, || report_on(folder))??;
    if !flags.quiet {
        print(&format!("report      {}", page.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn run(request: &Request, quiet: bool) -> Result<ExitCode, Failure> {
    let mut run = if request.resume {
        let (run, skipped) = Run::resume(&request.folder, &request.settings)?;
        for passed_over in skipped {
            say(&format!(
                "warning: passed over {}: {}",
                passed_over.checkpoint.path.display(),
                passed_over.reason
            ));
        }
        run
    } else {
        let (folder, settings, preset) = (&request.folder, &request.settings, &request.preset);
        match &request.init {
            Some(init) => Run::begin_from(folder, settings, preset.as_deref(), init)?,
            None => Run::begin(folder, settings, preset.as_deref())?,
        }
    };
    warn_of_skipped(run.skipped(), run.trainer().data().len());
    if !quiet {
        let from = run.trainer().steps_done();
        let begun = if request.resume {
            format!("goes on after step {from}")
        } else {
            "begins".into()
        };
        let how = match run.trainer().precision() {
            Precision::F32 => "",
            Precision::Bf16 => ", computing in bf16",
        };
        say(&format!(
            "{} {begun}{how}; Ctrl-C stops it and saves",
            run.folder().display()
        ));
        say(&format!("device {}", run.trainer().place()));
        let place = run.trainer().place();
        if let Some(why) = request
            .settings
            .unplanned()
            .filter(|_| !place.goes_by_graph())
        {
            say(&format!(
                "note: the network has {why}: it goes operation by operation and in f32, slower than others of its size"
            ));
        }
    }
    let mut display = Display::new(&request.settings, quiet);
    loop {
        let (progress, stopped) = advance(&mut run).map_err(|error| {
            display.finish();
            Failure::broke_off(&error, &run)
        })?;
        display.show(&progress, run.seconds(), request.settings.train.batch_size);
        let notes = run.trainer().place().notes();
        notes.iter().for_each(|note| display.note(note));
        if !progress.last && !stopped {
            continue;
        }
        display.finish();
        let report = report_at_the_end(&run, &progress, request)?;
        if !quiet {
            tell_where(&run, &progress, report.as_deref());
        }
        return Ok(ExitCode::from(if stopped { STOPPED } else { 0 }));
    }
}

/// The report, where it is asked for. The run is saved already: what stands in its way costs no more than the report.
fn report_at_the_end(
    run: &Run,
    progress: &Progress,
    request: &Request,
) -> Result<Option<PathBuf>, Failure> {
    if !progress.last || !request.settings.train.report {
        return Ok(None);
    }
    let failed = |error| Failure::without_report(&error, run);
    run.report().map(Some).map_err(failed)
}

/// A step, and a checkpoint where Ctrl-C asks for the end. It is saved before anything is said: whoever reads may be
/// gone with the same Ctrl-C.
fn advance(run: &mut Run) -> ddpm_train::Result<(Progress, bool)> {
    let progress = run.advance()?;
    let stopped = INTERRUPTED.load(Ordering::SeqCst) && !progress.last;
    if stopped {
        run.save()?;
    }
    Ok((progress, stopped))
}

/// Where everything is: on the standard output of a run that is done, on the other of one that was stopped.
fn tell_where(run: &Run, progress: &Progress, report: Option<&Path>) {
    let checkpoint = run.newest_checkpoint().map(Path::display);
    if !progress.last {
        if let Some(path) = checkpoint {
            let step = progress.report.step;
            say(&format!("stopped after step {step}; saved {path}"));
        }
        say(&format!("go on with: {}", go_on(run)));
        return;
    }
    print(&format!("run         {}", run.folder().display()));
    if let Some(path) = checkpoint {
        print(&format!("checkpoint  {path}"));
    }
    if let Some(path) = &progress.picture {
        print(&format!("picture     {}", path.display()));
    }
    if let Some(path) = report {
        print(&format!("report      {}", path.display()));
    }
    print(&format!(
        "more        cargo run --release -p ddpm-sample -- --model {}",
        run.folder().display()
    ));
}

fn dry_run(request: &Request) -> Result<ExitCode, Failure> {
    let settings = &request.settings;
    settings.check()?;
    let spec = settings.data_spec()?;
    let (pictures, keep) = (settings.data.pictures(), settings.data.keep());
    let splits = load_with(&spec, settings.data.directory.as_deref(), &pictures, &keep)
        .map_err(ddpm_train::Error::from)?;
    warn_of_skipped(&splits.skipped, splits.train.len());
    let data = splits.train;
    let (channels, height, width) = (data.channels(), data.height(), data.width());
    settings.check_data(data.len(), (channels, height, width))?;
    ddpm_train::Objective::new(&settings.diffusion)?;
    let config = settings.unet_config(channels, height, width)?;
    let train = &settings.train;
    let at_once = train.micro_batch.unwrap_or(train.batch_size);
    let place = Place::open(train.device).map_err(ddpm_train::Error::from)?;
    let memory = memory_needed(settings, &config, (height, width))?;
    let available = match place.card_memory() {
        Some((free, _)) => Some(free),
        None => memory_available(),
    };
    let there = available.map_or(String::new(), |bytes| {
        format!("; {} MiB are to be had", bytes >> 20)
    });
    print(settings.to_toml()?.trim_end());
    print("");
    print(&format!("# run         {}", request.folder.display()));
    print(&format!(
        "# data        {} images, {height}x{width}, {channels} channels, {}{}",
        data.len(),
        splits.origin,
        if data.is_streamed() {
            ", streamed from the cache"
        } else {
            ""
        }
    ));
    print(&format!("# device      {place}"));
    print(&format!("# parameters  {}", config.parameter_count()));
    print(&format!(
        "# memory      about {} MiB in training, {at_once} images at once{there}",
        memory >> 20
    ));
    let sheet = contact_sheet(request, &data)?;
    print(&format!(
        "# sheet       {}: the first images of training, as the network sees them",
        sheet.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Writes what the network would see first, beside the folder that the run would have.
fn contact_sheet(request: &Request, data: &Dataset) -> ddpm_train::Result<PathBuf> {
    /// Images on the sheet.
    const SHOWN: usize = 64;
    let mut name = request.folder.file_name().unwrap_or_default().to_owned();
    name.push("-data.png");
    let path = request.folder.with_file_name(name);
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).map_err(|source| ddpm_train::Error::Io {
            action: "make the folder",
            path: folder.into(),
            source,
        })?;
    }
    let settings = &request.settings;
    let pixels = settings.data.normalisation.pixel_map()?;
    let feed = Feed::new(data, settings.train.seed, settings.data.flip);
    let x_0 = feed.batch(0, SHOWN.min(data.len()), &pixels, &Device::Cpu)?;
    let sheet = sheet(&Picture::from_tensor(&x_0, &pixels)?)?;
    let story = [
        ("data", settings.data.name.clone()),
        ("seed", settings.train.seed.to_string()),
    ];
    write_png(&path, &sheet, &story)?;
    Ok(path)
}

/// Names the pictures that were left out, and counts them.
fn warn_of_skipped(skipped: &[Skipped], kept: usize) {
    const NAMED: usize = 20;
    if skipped.is_empty() {
        return;
    }
    let n = skipped.len();
    say(&format!(
        "warning: {n} pictures cannot be read and are left out; {kept} are left to train on"
    ));
    for one in skipped.iter().take(NAMED) {
        say(&format!("  {one}"));
    }
    if n > NAMED {
        say(&format!("  and {} more", n - NAMED));
    }
}

/// A line on the standard output; a reader that went away is not an error.
fn print(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}
