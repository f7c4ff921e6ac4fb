//! What the next pass of the network learns from, made ready while this one runs.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::{Examples, Result};

/// Passes that are made ready ahead: one would do, were all passes equally long.
const AHEAD: usize = 2;

/// Which examples: how many images came before, and how many are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    position: u64,
    count: usize,
}

/// Makes examples on a thread of its own, in the order in which training asks for them: whoever has got `count` examples
/// at `position` will ask for as many at `position + count`. What is asked for otherwise is made when it is asked for.
///
/// Examples are a function of their position alone, so that the thread changes nothing but the time.
pub(crate) struct Prefetch {
    source: Box<dyn Fn() -> Make + Send>,
    running: Option<Running>,
    waited: Duration,
}

/// Makes `count` examples at a position.
pub(crate) type Make = Box<dyn Fn(u64, usize) -> Result<Examples> + Send + Sync>;

/// A thread at work. It ends when nobody listens any more.
struct Running {
    made: Receiver<(Asked, Result<Examples>)>,
    next: Asked,
}

impl Prefetch {
    /// Nothing is made before the first call of [`Prefetch::get`]; `source` gives what makes it.
    pub(crate) fn new(source: impl Fn() -> Make + Send + 'static) -> Self {
        Self {
            source: Box::new(source),
            running: None,
            waited: Duration::ZERO,
        }
    }

    /// The `count` examples at `position`.
    pub(crate) fn get(&mut self, position: u64, count: usize) -> Result<Examples> {
        let started = Instant::now();
        let asked = Asked { position, count };
        if self
            .running
            .as_ref()
            .is_none_or(|running| running.next != asked)
        {
            self.running = Some(begin((self.source)(), asked));
        }
        let received = self
            .running
            .as_ref()
            .and_then(|running| running.made.recv().ok());
        self.waited += started.elapsed();
        if let (Some(running), Some((made, examples))) = (&mut self.running, received)
            && made == asked
        {
            running.next.position = position.saturating_add(count as u64);
            return examples;
        }
        // The thread is gone: it could not be started, or it broke off.
        self.running = None;
        (self.source)()(position, count)
    }

    /// How long [`Prefetch::get`] has waited since this was last asked.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

/// Starts a thread at this position.
fn begin(make: Make, first: Asked) -> Running {
    let (sender, made) = sync_channel(AHEAD);
    let thread = std::thread::Builder::new().name("prefetch".to_owned());
    // Where no thread can be had, the sender is dropped, and `get` makes the examples itself.
    drop(thread.spawn(move || run(&make, first, &sender)));
    Running { made, next: first }
}

fn run(make: &Make, first: Asked, sender: &SyncSender<(Asked, Result<Examples>)>) {
    // Noise is drawn in parallel where there are threads; here there is one, and the others are the network's.
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok();
    let mut asked = first;
    loop {
        let work = || make(asked.position, asked.count);
        let examples = alone
            .as_ref()
            .map_or_else(work, |alone| alone.install(work));
        let failed = examples.is_err();
        if sender.send((asked, examples)).is_err() || failed {
            return;
        }
        asked.position = asked.position.saturating_add(asked.count as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::thread::ThreadId;

    use candle_core::{Device, Tensor};

    use super::*;

    /// Examples that say where they are from, and who made them.
    fn prefetch(threads: &Arc<Mutex<Vec<ThreadId>>>) -> Prefetch {
        let threads = Arc::clone(threads);
        Prefetch::new(move || {
            let threads = Arc::clone(&threads);
            Box::new(move |position, count| {
                threads.lock().unwrap().push(std::thread::current().id());
                let x = Tensor::new(&[position as f32, count as f32], &Device::Cpu)?;
                Ok(Examples {
                    x_0: x.clone(),
                    t: vec![],
                    eps: x,
                })
            })
        })
    }

    fn numbers(examples: &Examples) -> Vec<f32> {
        examples.x_0.to_vec1().unwrap()
    }

    #[test]
    fn what_is_asked_for_comes_in_whatever_order() {
        let threads = Arc::new(Mutex::new(Vec::new()));
        let mut prefetch = prefetch(&threads);
        for (position, count) in [
            (0, 4),
            (4, 4),
            (8, 4),
            (8, 2),
            (10, 2),
            (100, 3),
            (0, 4),
            (4, 4),
        ] {
            let got = prefetch.get(position, count).unwrap();
            assert_eq!(numbers(&got), [position as f32, count as f32]);
        }
        let here = std::thread::current().id();
        assert!(threads.lock().unwrap().iter().all(|thread| *thread != here));
    }

    #[test]
    fn what_comes_next_is_ready_and_no_more_than_that() {
        let threads = Arc::new(Mutex::new(Vec::new()));
        let mut prefetch = prefetch(&threads);
        prefetch.get(0, 1).unwrap();
        let made = || threads.lock().unwrap().len();
        // One was taken, two are ready, and one waits to be.
        let started = Instant::now();
        while made() < 2 + AHEAD && started.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        assert_eq!(made(), 2 + AHEAD);
        prefetch.take_waited();
        prefetch.get(1, 1).unwrap();
        assert!(prefetch.take_waited() < Duration::from_secs(1));
        assert_eq!(prefetch.take_waited(), Duration::ZERO);
    }

    #[test]
    fn an_error_arrives_and_can_be_tried_again() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let mut prefetch = Prefetch::new(move || {
            let calls = Arc::clone(&counted);
            Box::new(move |_, _| {
                calls.fetch_add(1, Ordering::SeqCst);
                Err(crate::Error::Threads(3, "none".to_owned()))
            })
        });
        for _ in 0..3 {
            assert!(prefetch.get(0, 1).is_err());
        }
        assert!(calls.load(Ordering::SeqCst) >= 2);
    }
}
