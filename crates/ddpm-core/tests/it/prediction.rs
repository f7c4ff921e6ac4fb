//! Targets and the conversions between noise, x_0, v and posterior mean.

use crate::{at, every_schedule, fails, linear, same, wave, zero_snr};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction, Result, eps_from_x_0, posterior_weights, q_sample};

const ALL: [Prediction; 4] = [
    Prediction::Noise,
    Prediction::Original,
    Prediction::Velocity,
    Prediction::PosteriorMean,
];

/// A perfect network's output becomes the x_0 and the noise it was made of, at every level of every schedule.
#[test]
fn targets_become_image_and_noise_again() {
    for (_, schedule) in every_schedule() {
        let last = schedule.steps();
        for t in [[1, last], [1 + last / 2, last.min(2)]] {
            let t = at(&schedule, t);
            let (x_0, eps) = (wave(0.7), wave(1.3));
            let x_t = q_sample(&schedule, &x_0, &t, &eps).unwrap();
            for prediction in ALL {
                let smallest = t.iter().map(|&t| schedule.alpha_bar(t)).fold(1.0, f64::min);
                let of_x_0 = t
                    .iter()
                    .map(|&t| posterior_weights(&schedule, t).0)
                    .fold(1.0, f64::min);
                let lost = match prediction {
                    Prediction::Noise => smallest < 1e-12, // at 0: see `noise_says_nothing_at_zero_snr`
                    Prediction::PosteriorMean => of_x_0 < 1e-8,
                    _ => false,
                };
                if lost {
                    continue;
                }
                let output = prediction.target(&schedule, &x_0, &x_t, &t, &eps).unwrap();
                let x_0_hat = prediction.x_0_hat(&schedule, &x_t, &t, &output).unwrap();
                let eps_hat = prediction.eps_hat(&schedule, &x_t, &t, &output).unwrap();
                same(&x_0_hat, &x_0, 1e-7);
                same(&eps_hat, &eps, 1e-7);
                same(
                    &eps_from_x_0(&schedule, &x_t, &t, &x_0).unwrap(),
                    &eps,
                    1e-9,
                );
            }
        }
    }
}

/// noise -> x_0 -> noise and v -> (x_0, noise) -> v, for outputs that no perfect network made.
#[test]
fn conversions_are_identities() {
    let schedule = linear();
    let t = at(&schedule, [3, 700]);
    let (x_t, output) = (wave(0.7), wave(2.1));
    for prediction in ALL {
        let x_0 = prediction.x_0_hat(&schedule, &x_t, &t, &output).unwrap();
        let eps = prediction.eps_hat(&schedule, &x_t, &t, &output).unwrap();
        same(&q_sample(&schedule, &x_0, &t, &eps).unwrap(), &x_t, 1e-10);
        same(
            &prediction.target(&schedule, &x_0, &x_t, &t, &eps).unwrap(),
            &output,
            1e-9,
        );
    }
}

#[test]
fn noise_says_nothing_at_zero_snr() {
    let schedule = zero_snr();
    let t = at(&schedule, [5, 1000]);
    let (x_t, output) = (wave(0.7), wave(1.3));
    fails(
        Prediction::Noise.x_0_hat(&schedule, &x_t, &t, &output),
        "x_0 from predicted noise is not defined at t = 1000, where alpha_bar is 0 and x_t holds nothing of the image: \
         train the network to predict v or x_0, or use a schedule without zero terminal SNR",
    );
    // v at the end is -x_0.
    let v = Prediction::Velocity
        .x_0_hat(&schedule, &x_t, &t, &output)
        .unwrap();
    same(
        &v.get(1).unwrap(),
        &output.get(1).unwrap().neg().unwrap(),
        0.0,
    );
}

#[test]
fn outputs_that_do_not_fit() {
    let schedule = linear();
    let t = at(&schedule, [1, 2]);
    let (x, wrong) = (wave(0.7), wave(0.7).narrow(1, 0, 2).unwrap());
    for prediction in ALL {
        let message =
            "the output of the network has shape [2, 2, 4, 6], expected [2, 3, 4, 6] as x_t";
        fails(prediction.x_0_hat(&schedule, &x, &t, &wrong), message);
        fails(
            prediction.x_0_hat(&schedule, &x, &t[..1], &x),
            "2 images but 1 timesteps: every image needs its own t",
        );
        fails(
            prediction.target(&schedule, &x, &wrong, &t, &x),
            "x_t has shape [2, 2, 4, 6], expected [2, 3, 4, 6] as x_0",
        );
        fails(
            prediction.target(&schedule, &x, &x, &t, &wrong),
            "eps has shape [2, 2, 4, 6], expected [2, 3, 4, 6] as x_0",
        );
        assert!(prediction.eps_hat(&schedule, &x, &t, &wrong).is_err());
        fails(
            prediction.eps_hat(&schedule, &x, &t[..1], &x),
            "2 images but 1 timesteps: every image needs its own t",
        );
    }
}

#[test]
fn a_closure_is_a_network() {
    let half = |x_t: &Tensor, time: &[f64]| -> Result<Tensor> { Ok((x_t * time[0])?) };
    let network: &dyn Denoiser = &half;
    same(
        &network.predict(&wave(0.7), &[0.5, 0.5]).unwrap(),
        &(wave(0.7) * 0.5).unwrap(),
        0.0,
    );
}
