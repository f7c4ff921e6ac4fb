//! Walks as iterators: what they yield, when they draw, how clipping acts, and what bad input gets.

use crate::{NoNoise, OnSteps, Waves, fails, last, linear, numbers, process, same, start};
use candle_core::{Tensor, Var};
use ddpm_core::{Denoiser, NoiseSource, Prediction, Result, Schedule, Spacing, Variance};
use ddpm_samplers::{
    Clip, DdimSettings, Landing, SamplerKind, SelfConditioned, ancestral, ddim, ddim_inversion,
    ddim_inversion_with, ddim_with,
};
use ddpm_tests::device;
use std::cell::RefCell;
use std::num::NonZeroUsize;

fn network(x: &Tensor, _: &[f64]) -> Result<Tensor> {
    Ok((x * 0.5)?)
}

struct Counted(Vec<usize>);

impl NoiseSource for Counted {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        self.0.push(draw);
        Waves.draw(draw, like)
    }
}

#[test]
fn noise_is_drawn_once_a_step_and_not_at_the_last() {
    let process = process(linear(5), Prediction::Noise, Clip::None);
    let mut noise = Counted(vec![]);
    last(ancestral(
        &process,
        Variance::FixedLarge,
        &network,
        &start(),
        &mut noise,
    ));
    assert_eq!(noise.0, [0, 1, 2, 3]);
    let mut noise = Counted(vec![]);
    last(ddim(&process, 0.1, &network, &start(), &mut noise));
    assert_eq!(noise.0, [0, 1, 2, 3]);
    last(ddim(&process, 0.0, &network, &start(), &mut NoNoise));
}

/// Also where the last step of DDIM does not end at the clean image.
#[test]
fn samplers_know_how_often_they_draw() {
    let process = process(linear(5), Prediction::Noise, Clip::None);
    let ending_at = |alpha_bar_end| {
        let mut settings = DdimSettings::new(0.5);
        settings.alpha_bar_end = alpha_bar_end;
        OnSteps::Ddim(settings)
    };
    for (sampler, draws) in [
        (OnSteps::Ancestral(Variance::FixedLarge), 4),
        (OnSteps::Ancestral(Variance::FixedSmall), 4),
        (OnSteps::Ddim(DdimSettings::new(0.0)), 0),
        (OnSteps::Ddim(DdimSettings::new(1.0)), 4),
        (ending_at(0.99995), 5),
        (ending_at(process.schedule.alpha_bars()[1]), 4),
    ] {
        let mut noise = Counted(vec![]);
        last(sampler.of(&process).walk(&network, &start(), &mut noise));
        assert_eq!(noise.0.len(), draws, "{sampler:?}");
        assert_eq!(sampler.of(&process).draws(), draws, "{sampler:?}");
    }
}

#[test]
fn steps_say_what_they_used() {
    let schedule = linear(1000).respaced(Spacing::Trailing, 4).unwrap();
    let process = process(schedule, Prediction::Noise, Clip::Range(1.0));
    let told = RefCell::new(vec![]);
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        told.borrow_mut().push(time.to_vec());
        network(x, time)
    };
    let mut noise = Waves;
    let mut walk = ddim(&process, 0.3, &network, &start(), &mut noise);
    assert_eq!(walk.len(), 4);
    let first = walk.next().unwrap().unwrap();
    assert_eq!((first.t, first.time, walk.len()), (4, 999.0, 3));
    let times: Vec<f64> = walk.map(|step| step.unwrap().time).collect();
    assert_eq!(times, [749.0, 499.0, 249.0]);
    assert_eq!(told.borrow()[1], [749.0, 749.0]);
    let up: Vec<(usize, f64)> = ddim_inversion(&process, &network, &start())
        .map(|step| step.unwrap())
        .map(|s| (s.t, s.time))
        .collect();
    assert_eq!(up, [(1, 249.0), (2, 499.0), (3, 749.0), (4, 999.0)]);
}

/// A walk is lazy: dropping it asks the network no more.
#[test]
fn nothing_happens_before_next() {
    let process = process(linear(5), Prediction::Noise, Clip::None);
    let count = RefCell::new(0);
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        *count.borrow_mut() += 1;
        network(x, time)
    };
    let mut noise = Waves;
    let mut walk = ancestral(
        &process,
        Variance::FixedSmall,
        &network,
        &start(),
        &mut noise,
    );
    assert_eq!(*count.borrow(), 0);
    walk.next();
    assert_eq!(*count.borrow(), 1);
}

#[test]
fn clipping_changes_the_result_and_holds() {
    for sampler in [
        OnSteps::Ancestral(Variance::FixedSmall),
        OnSteps::Ddim(DdimSettings::new(0.0)),
    ] {
        let end = |clip: Clip| {
            let process = process(linear(20), Prediction::Noise, clip);
            let mut noise = Waves;
            last(sampler.of(&process).walk(&network, &start(), &mut noise))
        };
        let (free, clipped) = (end(Clip::None), end(Clip::Range(0.5)));
        assert!(
            numbers(&(free.x - &clipped.x).unwrap())
                .iter()
                .any(|d| d.abs() > 0.1)
        );
        assert!(numbers(&clipped.x_0_hat).iter().all(|x| x.abs() <= 0.5));
        // The last step is x_0-hat itself.
        same(&clipped.x, &clipped.x_0_hat, 1e-6);
        let channels = end(Clip::PerChannel(vec![(-0.1, 0.2), (-0.5, 0.5), (0.0, 2.0)]));
        let x = channels.x_0_hat;
        for (c, (low, high)) in [(-0.1, 0.2), (-0.5, 0.5), (0.0, 2.0)]
            .into_iter()
            .enumerate()
        {
            let values = numbers(&x.narrow(1, c, 1).unwrap());
            assert!(
                values
                    .iter()
                    .all(|x| (low - 1e-6..=high + 1e-6).contains(x))
            );
        }
        same(
            &end(Clip::PerChannel(vec![(-0.5, 0.5); 3])).x,
            &clipped.x,
            0.0,
        );
    }
}

/// Weights in training are variables; a walk over them must not keep the graph of all its steps.
#[test]
fn no_graph_is_kept() {
    struct Trained(Var);
    impl Denoiser for Trained {
        fn predict(&self, x_t: &Tensor, _: &[f64]) -> Result<Tensor> {
            Ok(x_t.broadcast_mul(&self.0)?)
        }
    }
    let network = Trained(Var::from_tensor(&Tensor::new(0.5f32, &device()).unwrap()).unwrap());
    let process = process(linear(4), Prediction::Velocity, Clip::Range(1.0));
    let x = Var::from_tensor(&start()).unwrap();
    let mut noise = Waves;
    for sampler in [
        OnSteps::Ancestral(Variance::FixedSmall),
        OnSteps::Ddim(DdimSettings::new(0.5)),
    ] {
        for step in sampler.of(&process).walk(&network, &x, &mut noise) {
            let step = step.unwrap();
            assert!(!step.x.track_op() && !step.x_0_hat.track_op());
        }
    }
    for step in ddim_inversion(&process, &network, &x) {
        let step = step.unwrap();
        assert!(!step.x.track_op() && !step.x_0_hat.track_op());
    }
}

/// An image does not depend on the images beside it.
#[test]
fn place_in_the_batch_does_not_matter() {
    let schedule = linear(1000).respaced(Spacing::Trailing, 10).unwrap();
    let process = process(schedule, Prediction::Noise, Clip::Range(1.0));
    let both = last(ddim(&process, 0.0, &network, &start(), &mut NoNoise)).x;
    let second = last(ddim(
        &process,
        0.0,
        &network,
        &start().narrow(0, 1, 1).unwrap(),
        &mut NoNoise,
    ))
    .x;
    same(&both.narrow(0, 1, 1).unwrap(), &second, 0.0);
}

#[test]
fn an_error_ends_the_walk() {
    let process = process(linear(5), Prediction::Noise, Clip::None);
    let broken = |_: &Tensor, _: &[f64]| -> Result<Tensor> {
        Err(ddpm_core::Error::Denoiser("out of ideas".into()))
    };
    let mut noise = Waves;
    let mut walk = ancestral(
        &process,
        Variance::FixedSmall,
        &broken,
        &start(),
        &mut noise,
    );
    fails(walk.next().unwrap(), "denoiser: out of ideas");
    assert_eq!(walk.len(), 0);
    assert!(walk.next().is_none());
    let mut noise = Waves;
    let mut walk = ddim(&process, 0.0, &broken, &start(), &mut noise);
    fails(walk.next().unwrap(), "denoiser: out of ideas");
    assert!(walk.next().is_none());
    let mut walk = ddim_inversion(&process, &broken, &start());
    fails(walk.next().unwrap(), "denoiser: out of ideas");
    assert!(walk.next().is_none());
}

/// Equation 16 would be negative where a step goes down to a noisier level.
#[test]
fn a_stride_over_another_schedule_is_refused_before_the_network_is_asked() {
    let schedule = linear(1000).respaced(Spacing::Trailing, 10).unwrap();
    let process = process(schedule.clone(), Prediction::Noise, Clip::None);
    let network =
        |_: &Tensor, _: &[f64]| -> Result<Tensor> { panic!("the network of a walk without steps") };
    let first = |training: &Schedule| {
        let settings = DdimSettings::new(1.0).landing_as_diffusers(training, 10);
        ddim_with(&process, settings, &network, &start(), &mut NoNoise)
            .next()
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    let expected = "expected no less than where it starts: \
                    `training` must be what the walk's schedule was respaced from";
    let noisier = Schedule::constant(1000, 0.5).unwrap();
    let message = format!(
        "alpha_bar where a stride lands is {}, {expected}",
        0.5f64.powi(100)
    );
    assert_eq!(first(&noisier), message);
    let without = linear(1000).respaced(Spacing::Linspace, 100).unwrap();
    let message = format!("alpha_bar where a stride lands is NaN, {expected}");
    assert_eq!(first(&without), message);
}

#[test]
fn no_stride_is_zero() {
    let training = linear(10);
    for (steps, expected) in [(3, 3), (10, 1), (11, 1), (usize::MAX, 1), (0, 10)] {
        let settings = DdimSettings::new(0.0).landing_as_diffusers(&training, steps);
        let Landing::Stride { stride, .. } = settings.landing else {
            panic!("{settings:?}");
        };
        assert_eq!(stride, NonZeroUsize::new(expected).unwrap());
    }
}

#[test]
fn what_bad_input_gets() {
    let plain = process(linear(5), Prediction::Noise, Clip::None);
    let first = |eta: f64| {
        ddim(&plain, eta, &network, &start(), &mut Waves)
            .next()
            .unwrap()
    };
    fails(first(-0.5), "eta is -0.5, expected a number in 0..=1");
    fails(first(1.5), "eta is 1.5, expected a number in 0..=1");
    fails(first(f64::NAN), "eta is NaN, expected a number in 0..=1");
    let mut settings = DdimSettings::new(0.0);
    settings.alpha_bar_end = 0.0;
    fails(
        ddim_with(&plain, settings, &network, &start(), &mut Waves)
            .next()
            .unwrap(),
        "alpha_bar_end is 0, expected a number in (0, 1]",
    );
    fails(
        ddim_inversion_with(&plain, 1.5, &network, &start())
            .next()
            .unwrap(),
        "alpha_bar_start is 1.5, expected a number in (0, 1]",
    );
    let mut settings = DdimSettings::new(0.0);
    settings.alpha_bar_end = 0.9998;
    fails(
        ddim_with(&plain, settings, &network, &start(), &mut Waves)
            .next()
            .unwrap(),
        "alpha_bar_end is 0.9998, expected at least alpha_bar at t = 1 of the walk",
    );
    fails(
        ddim_inversion_with(&plain, 0.9998, &network, &start())
            .next()
            .unwrap(),
        "alpha_bar_start is 0.9998, expected at least alpha_bar at t = 1 of the walk",
    );
    let narrow = |x: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(x.narrow(1, 0, 2)?) };
    fails(
        ddim(&plain, 0.0, &narrow, &start(), &mut Waves)
            .next()
            .unwrap(),
        "the network was given [2, 3, 4, 6] and returned [2, 2, 4, 6], expected the same shape, or twice the channels",
    );
    struct Small;
    impl NoiseSource for Small {
        fn draw(&mut self, _: usize, like: &Tensor) -> Result<Tensor> {
            Ok(like.narrow(0, 0, 1)?)
        }
    }
    fails(
        ancestral(&plain, Variance::FixedSmall, &network, &start(), &mut Small)
            .next()
            .unwrap(),
        "draw 0 of noise has shape [1, 3, 4, 6], expected [2, 3, 4, 6]",
    );
    let clip = |clip: Clip| clip.apply(&start());
    fails(
        clip(Clip::Range(0.0)),
        "the upper end of a clipping range is 0, expected a number above the lower end",
    );
    fails(
        clip(Clip::PerChannel(vec![(0.0, 1.0), (1.0, 0.5), (0.0, 1.0)])),
        "the upper end of a clipping range is 0.5, expected a number above the lower end",
    );
    fails(
        clip(Clip::PerChannel(vec![(0.0, 1.0)])),
        "clipping has ranges for 1 channels, but the images have 3",
    );
    let zero_snr = linear(5).rescaled_to_zero_terminal_snr().unwrap();
    let process = process(zero_snr, Prediction::Noise, Clip::None);
    let error = ddim(&process, 0.0, &network, &start(), &mut Waves)
        .next()
        .unwrap()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("x_0 from predicted noise is not defined at t = 5"),
        "{error}"
    );
    fails(
        "leap".parse::<SamplerKind>(),
        "unknown sampler `leap`, expected one of: ddpm, ddim, dpm++, dpm++3m, dpm++2s, dpm++sde, dpm, dpm-sde, unipc, deis, pndm, plms, \
         lms, euler, euler-a, heun, kdpm2, kdpm2-a, edm, edm-dpm++, sde-ve",
    );
    assert_eq!("ddim".parse::<SamplerKind>().unwrap(), SamplerKind::Ddim);
    assert_eq!(SamplerKind::Ddpm.to_string(), "ddpm");
    for kind in SamplerKind::all() {
        assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
    }
    assert_eq!(
        "dpm++2m".parse::<SamplerKind>().unwrap(),
        SamplerKind::DpmPlusPlus
    );
}

#[test]
fn a_self_conditioned_network_is_told_its_last_x_0_hat_clipped_and_none_at_first() {
    for prediction in [Prediction::Original, Prediction::Velocity] {
        let process = process(linear(5), prediction, Clip::Range(0.25));
        let told = RefCell::new(Vec::new());
        let network = |x: &Tensor, time: &[f64], last: Option<&Tensor>| {
            told.borrow_mut().push((time[0], last.map(numbers)));
            // Twice the channels: the second half is no part of x_0-hat.
            let output = match last {
                None => x.clone(),
                Some(last) => ((x * 0.5)? + last)?,
            };
            Ok(Tensor::cat(&[&output, &output], 1)?)
        };
        let conditioned = SelfConditioned::new(&process, network);
        let mut seen = vec![None];
        for step in ddim(&process, 0.0, &conditioned, &start(), &mut NoNoise) {
            let x_0_hat = numbers(&step.unwrap().x_0_hat);
            assert!(x_0_hat.iter().all(|x| x.abs() <= 0.25));
            seen.push(Some(x_0_hat));
        }
        let told = told.into_inner();
        let times: Vec<f64> = told.iter().map(|(time, _)| *time).collect();
        assert_eq!(times, [4.0, 3.0, 2.0, 1.0, 0.0]);
        for ((_, told), seen) in told.into_iter().zip(seen) {
            assert_eq!(told, seen);
        }
    }
}

#[test]
fn a_self_conditioned_network_is_asked_at_steps_of_training() {
    let process = process(linear(5), Prediction::Noise, Clip::None);
    let network = |x: &Tensor, _: &[f64], _: Option<&Tensor>| Ok(x.clone());
    let conditioned = SelfConditioned::new(&process, network);
    for time in [1.5, -1.0, 5.0, f64::NAN] {
        let error = conditioned.predict(&start(), &[time]).unwrap_err();
        assert!(error.to_string().contains("choose ddpm or ddim"), "{error}");
    }
}
