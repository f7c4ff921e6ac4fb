//! Numbers of the papers' formulas, computed apart from this program in double precision, and its own.

use candle_core::{Device, Tensor};
use ddpm_core::{
    Prediction, Schedule, Timestep, Weighting, decoder_log_likelihood, normal_kl,
    posterior_weights, prior_term,
};
use ddpm_train::{EmaWarmUp, ema_decay};

use super::row::Row;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = schedules();
    rows.extend(posterior());
    rows.extend(min_snr());
    rows.extend(likelihood());
    rows.extend(decays());
    rows.extend(spacings());
    rows
}

const LINEAR: &str = "Ho et al. 2020, section 4, linear betas, computed apart from this program";
const COSINE: &str = "Nichol and Dhariwal 2021, equation 17, computed apart from this program";
const SIGMOID: &str =
    "denoising-diffusion-pytorch, sigmoid_beta_schedule, computed apart from this program";
const ZERO_SNR: &str = "Lin et al. 2023, algorithm 1, computed apart from this program";
const POSTERIOR: &str = "Ho et al. 2020, equation 7, computed apart from this program";
const MIN_SNR: &str =
    "Hang et al. 2023, equation 8 for predicted noise, computed apart from this program";
const LIKELIHOOD: &str =
    "Ho et al. 2020, equations 5 and 13, computed apart from this program in nats";
const EMA: &str = "diffusers, src/diffusers/training_utils.py, EMAModel.get_decay";
const SPACING: &str = "guided-diffusion, guided_diffusion/respace.py, space_timesteps";

fn linear() -> Schedule {
    Schedule::linear(1000, 1e-4, 0.02).unwrap()
}

/// A row for each time, counted from 0 as in others' tables, that holds to so many significant digits.
fn at_times(
    what: &str,
    source: &'static str,
    schedule: &Schedule,
    of: impl Fn(Timestep) -> f64,
    (digits, expected): (i32, &[(usize, f64)]),
) -> Vec<Row> {
    let row = |&(time, expected): &(usize, f64)| {
        let t = schedule.timestep_at_network_time(time).unwrap();
        let what = format!("{what} at {time}");
        Row::digits(what, source, expected, of(t), digits)
    };
    expected.iter().map(row).collect()
}

fn schedules() -> Vec<Row> {
    let alpha_bars = |source, schedule: Schedule, expected: (i32, &[(usize, f64)])| {
        let of = |t| schedule.alpha_bar(t);
        at_times("alpha-bar", source, &schedule, of, expected)
    };
    let hos = [
        (0, 0.9999),
        (1, 0.9997800921),
        (10, 0.9978065725),
        (100, 0.8951415909),
        (250, 0.5214230306),
        (500, 0.07779665837),
        (750, 0.003300158362),
        (999, 4.035829765e-5),
    ];
    let cosine = [
        (0, 0.9999587158),
        (1, 0.9999125759),
        (10, 0.9992789038),
        (100, 0.9715756818),
        (250, 0.8458879865),
        (500, 0.4922851724),
        (750, 0.1431786464),
        (998, 2.428766907e-6),
        (999, 2.428766907e-9),
    ];
    let sigmoid = [
        (0, 0.99969972),
        (100, 0.96000048),
        (250, 0.84986301),
        (500, 0.49834282),
        (750, 0.14815968),
    ];
    let sigmoid_end = [(998, 3.002792e-4), (999, 3.002792e-7)];
    let zero_snr = [
        (0, 0.9999),
        (100, 0.89449044),
        (500, 0.075246216),
        (998, 4.2132625e-9),
        (999, 0.0),
    ];
    let moved = linear().rescaled_to_zero_terminal_snr().unwrap();
    let sigmoids = || Schedule::alpha_bar_sigmoid(1000).unwrap();
    let mut rows = alpha_bars(LINEAR, linear(), (10, &hos));
    let snr = [(0, 9999.0), (500, 0.0843595), (999, 4.03599e-5)];
    let schedule = linear();
    let of = |t| schedule.snr(t);
    rows.extend(at_times("SNR", LINEAR, &schedule, of, (6, &snr)));
    let cosines = Schedule::cosine(1000).unwrap();
    rows.extend(alpha_bars(COSINE, cosines, (10, &cosine)));
    rows.extend(alpha_bars(SIGMOID, sigmoids(), (8, &sigmoid)));
    rows.extend(alpha_bars(SIGMOID, sigmoids(), (7, &sigmoid_end)));
    rows.extend(alpha_bars(ZERO_SNR, moved, (8, &zero_snr)));
    rows
}

fn posterior() -> Vec<Row> {
    let schedule = linear();
    let of = |what, weight: &dyn Fn(Timestep) -> f64, expected| {
        at_times(what, POSTERIOR, &schedule, weight, expected)
    };
    let of_x_0 = [(1, 0.5452915), (500, 0.0030580571), (999, 1.2835149e-4)];
    let of_x_t = [(1, 0.4547085), (500, 0.99410435), (999, 0.98994868)];
    let variances = [(1, 5.4531877e-5), (487, 0.009791572), (999, 0.019999984)];
    let mut rows = of(
        "weight of x_0",
        &|t| posterior_weights(&schedule, t).0,
        (7, &of_x_0),
    );
    rows.extend(of(
        "weight of x_t",
        &|t| posterior_weights(&schedule, t).1,
        (7, &of_x_t),
    ));
    rows.extend(of("variance", &|t| schedule.beta_tilde(t), (7, &variances)));
    rows
}

fn min_snr() -> Vec<Row> {
    let schedule = linear();
    let weighting = Weighting::MinSnr { gamma: 5.0 };
    let of = |t| weighting.weight(&schedule, Prediction::Noise, t);
    let at = |expected| at_times("gamma 5, weight", MIN_SNR, &schedule, of, expected);
    let mut rows = at((5, &[(0, 5.0005e-4)]));
    rows.extend(at((6, &[(100, 0.585709), (250, 1.0), (999, 1.0)])));
    rows
}

fn likelihood() -> Vec<Row> {
    let one = |x: f64| Tensor::new(&[x], &Device::Cpu).unwrap();
    let only = |x: Tensor| x.to_vec1::<f64>().unwrap()[0];
    let kls = [
        ([1.0, 0.0, 0.0, 0.0], 0.5),
        ([0.0, -1.0, 0.0, 1.0], 0.56766764),
        ([0.3, -2.0, -0.2, -1.5], 0.61347646),
    ];
    let decoded = [
        ([0.0, 0.0, 0.0], -5.76705747),
        ([0.0, 0.0, -3.0], -2.76809361),
        ([1.0, 1.0, -3.0], -0.63225758),
        ([-1.0, -1.0, -3.0], -0.63225758),
        ([0.5, 0.4, -2.0], -4.04096405),
        ([0.0, 1.0, -6.0], -27.63102112),
    ];
    let mut rows = Vec::new();
    for (of, expected) in kls {
        let what = format!("KL between Gaussians, means and log-variances {of:?}");
        let [m1, v1, m2, v2] = of.map(one);
        let ours = only(normal_kl(&m1, &v1, &m2, &v2).unwrap());
        rows.push(Row::digits(what, LIKELIHOOD, expected, ours, 8));
    }
    for (of, expected) in decoded {
        let what = format!("log-likelihood of a byte, x, mean and log-scale {of:?}");
        let [x, mean, scale] = of.map(one);
        let ours = only(decoder_log_likelihood(&x, &mean, &scale).unwrap());
        rows.push(Row::digits(what, LIKELIHOOD, expected, ours, 8));
    }
    let white = Tensor::ones((1, 2, 3, 5), candle_core::DType::F64, &Device::Cpu).unwrap();
    let ours = only(prior_term(&linear(), &white).unwrap());
    let what = "prior term of a white image, bits per dimension".to_owned();
    rows.push(Row::digits(what, LIKELIHOOD, 2.911294542e-5, ours, 7));
    rows
}

fn decays() -> Vec<Row> {
    let kinds = [
        (
            "use_ema_warmup",
            EmaWarmUp::Power,
            [0.0, 0.405396, 0.834440, 0.968612, 0.994381],
        ),
        (
            "without",
            EmaWarmUp::Ratio,
            [0.0, 0.181818, 0.55, 0.918182, 0.991089],
        ),
    ];
    let of = |(what, warm_up, expected): (&str, EmaWarmUp, [f64; 5])| {
        let steps = [1, 2, 11, 101, 1001];
        let rows = steps.into_iter().zip(expected);
        let rows = rows.map(move |(step, expected)| {
            let what = format!("decay, {what}, step {step}");
            Row::digits(what, EMA, expected, ema_decay(0.9999, warm_up, step), 6)
        });
        rows.collect::<Vec<Row>>()
    };
    kinds.into_iter().flat_map(of).collect()
}

/// Places of a list of steps, counted from 0, and the times there.
type Places<'a> = &'a [(usize, usize)];

fn spacings() -> Vec<Row> {
    let cases: [(usize, &str, Places); 4] = [
        (1000, "10", &[(0, 0), (1, 111), (2, 222), (9, 999)]),
        (
            300,
            "10,15,20",
            &[
                (1, 11),
                (9, 99),
                (10, 100),
                (11, 107),
                (12, 114),
                (24, 199),
                (25, 200),
                (26, 205),
                (27, 210),
                (28, 216),
                (29, 221),
                (44, 299),
            ],
        ),
        (1000, "ddim10", &[(0, 0), (1, 100), (9, 900)]),
        (
            4000,
            "250",
            &[
                (0, 0),
                (1, 16),
                (2, 32),
                (3, 48),
                (247, 3967),
                (248, 3983),
                (249, 3999),
            ],
        ),
    ];
    let of = |(all, text, places): (usize, &str, Places)| {
        let training = Schedule::linear(all, 1e-4, 0.02).unwrap();
        let kept = training.respaced_by_text(text).unwrap();
        let (places, expected): (Vec<usize>, Vec<f64>) =
            places.iter().map(|&(i, time)| (i, time as f64)).unzip();
        let time = |i: &usize| kept.network_time(kept.timestep(i + 1).unwrap());
        let ours: Vec<f64> = places.iter().map(time).collect();
        let what = format!("\"{text}\" of {all}, times of steps {places:?}");
        Row::slice(&what, SPACING, &expected, &ours, 0.0)
    };
    cases.into_iter().flat_map(of).collect()
}
