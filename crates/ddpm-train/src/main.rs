//! The program: flags -> validated request -> library -> printed result.
mod flags;
mod progress;
mod request;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use ddpm_data::load;
use ddpm_train::{PRESETS, Run, on_threads};
use ddpm_unet::Use;
use flags::{Flags, NOTHING_TYPED};
use progress::{Display, say};
use request::{Request, Usage};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ctrl-C or SIGTERM came: finish the step, save, leave.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const STOPPED: u8 = 130;

fn main() -> ExitCode {
    if std::env::args_os().len() == 1 {
        say(NOTHING_TYPED);
        return ExitCode::from(WRONG_USAGE);
    }
    let flags = Flags::parse();
    let outcome = if flags.list_presets {
        list_presets()
    } else {
        train(&flags)
    };
    outcome.unwrap_or_else(|failure| {
        let (text, status) = failure.told();
        say(&format!("error: {text}"));
        ExitCode::from(status)
    })
}

/// What ends the program early.
enum Failure {
    Usage(Usage),
    Training(ddpm_train::Error),
}

impl Failure {
    fn told(&self) -> (String, u8) {
        use ddpm_train::Error;
        match self {
            Self::Usage(Usage(text)) => (text.clone(), WRONG_USAGE),
            Self::Training(error) => {
                let status = match error {
                    Error::Setting { .. } | Error::Layer { .. } | Error::UnknownPreset { .. } => {
                        WRONG_USAGE
                    }
                    Error::RunExists(_) | Error::NoRun(_) | Error::ResumeDiffers { .. } => {
                        WRONG_USAGE
                    }
                    _ => FAILED,
                };
                (error.to_string(), status)
            }
        }
    }
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

impl From<ddpm_train::Error> for Failure {
    fn from(error: ddpm_train::Error) -> Self {
        Self::Training(error)
    }
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
    if flags.preset.is_none() && flags.config.is_none() && !flags.resume {
        return Err(Usage(
            "say what to train: --preset NAME (--list-presets shows them) or --config FILE".into(),
        )
        .into());
    }
    let request = Request::new(flags)?;
    if flags.dry_run {
        return dry_run(&request);
    }
    let first = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(STOPPED.into()); // the second time there is no waiting for the step
        }
    });
    first.map_err(|e| Usage(format!("cannot listen for Ctrl-C: {e}")))?;
    on_threads(request.settings.train.threads, || {
        run(&request, flags.quiet)
    })?
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
        Run::begin(
            &request.folder,
            &request.settings,
            request.preset.as_deref(),
        )?
    };
    if run.finished() {
        let text = format!(
            "`{}` is at its end already; give it more --steps or --minutes",
            request.folder.display()
        );
        return Err(Usage(text).into());
    }
    if !quiet {
        let from = run.trainer().steps_done();
        let begun = if request.resume {
            format!("goes on after step {from}")
        } else {
            "begins".into()
        };
        say(&format!(
            "{} {begun}; Ctrl-C stops it and saves",
            run.folder().display()
        ));
    }
    let mut display = Display::new(&request.settings, quiet);
    loop {
        let progress = run.advance().inspect_err(|_| display.finish())?;
        // Saved before anything is said: whoever reads may be gone with the same Ctrl-C.
        let interrupted = INTERRUPTED.load(Ordering::SeqCst) && !progress.last;
        let saved = interrupted.then(|| run.save()).transpose()?;
        display.show(&progress, run.seconds(), request.settings.train.batch_size);
        if progress.last {
            display.finish();
            if !quiet {
                tell_where(&run, progress.checkpoint, progress.picture);
            }
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(checkpoint) = saved {
            display.finish();
            if !quiet {
                let out = run.folder().display();
                say(&format!(
                    "stopped after step {}; saved {}",
                    progress.report.step,
                    checkpoint.display()
                ));
                say(&format!(
                    "go on with: cargo run --release -p ddpm-train -- --resume --out {out}"
                ));
            }
            return Ok(ExitCode::from(STOPPED));
        }
    }
}

fn tell_where(run: &Run, checkpoint: Option<PathBuf>, picture: Option<PathBuf>) {
    print(&format!("run         {}", run.folder().display()));
    if let Some(path) = checkpoint {
        print(&format!("checkpoint  {}", path.display()));
    }
    if let Some(path) = picture {
        print(&format!("picture     {}", path.display()));
    }
    print(&format!(
        "more        cargo run --release -p ddpm-sample -- --model {}",
        run.folder().display()
    ));
}

fn dry_run(request: &Request) -> Result<ExitCode, Failure> {
    let settings = &request.settings;
    settings.check()?;
    let spec = settings
        .data
        .name
        .parse()
        .map_err(ddpm_train::Error::from)?;
    let data = load(&spec, settings.data.directory.as_deref())
        .map_err(ddpm_train::Error::from)?
        .train;
    let (channels, height, width) = (data.channels(), data.height(), data.width());
    settings.check_data(data.len(), (channels, height, width))?;
    ddpm_train::Objective::new(&settings.diffusion)?;
    let config = settings.unet_config(channels, height, width)?;
    let at_once = settings
        .train
        .micro_batch
        .unwrap_or(settings.train.batch_size);
    let used = Use::Training {
        averages: settings.ema.rates.len(),
    };
    let memory = config
        .memory_estimate(at_once, height, width, used)
        .map_err(ddpm_train::Error::from)?;
    print(settings.to_toml()?.trim_end());
    print("");
    print(&format!("# run         {}", request.folder.display()));
    print(&format!(
        "# data        {} images, {height}x{width}, {channels} channels",
        data.len()
    ));
    print(&format!("# parameters  {}", config.parameter_count()));
    print(&format!(
        "# memory      about {} MiB in training, {at_once} images at once",
        memory.total() >> 20
    ));
    Ok(ExitCode::SUCCESS)
}

/// A line on the standard output; a reader that went away is not an error.
fn print(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}
