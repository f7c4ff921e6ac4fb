//! What diffusers' tests of its schedulers expect: whole walks on a dummy network, timesteps, sigmas and variances.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use ddpm_core::{NoiseSource, Schedule, q_sample};
use ddpm_random::TorchGenerator;
use ddpm_samplers::{Choice, Levels, Sampler, SchedulerConfig, Steps};
use serde_json::{Value, json};

use super::row::Row;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = on_steps();
    rows.extend(multistep());
    rows.extend(exploding());
    rows.extend(edm());
    rows.extend(tables());
    rows
}

const DDPM: &str = "tests/schedulers/test_scheduler_ddpm.py";
const DDIM: &str = "tests/schedulers/test_scheduler_ddim.py";
const INVERSE: &str = "tests/schedulers/test_scheduler_ddim_inverse.py";
const PNDM: &str = "tests/schedulers/test_scheduler_pndm.py";
const MULTI: &str = "tests/schedulers/test_scheduler_dpm_multi.py";
const SINGLE: &str = "tests/schedulers/test_scheduler_dpm_single.py";
const UNIPC: &str = "tests/schedulers/test_scheduler_unipc.py";
const DEIS: &str = "tests/schedulers/test_scheduler_deis.py";
const EULER: &str = "tests/schedulers/test_scheduler_euler.py";
const ANCESTRAL: &str = "tests/schedulers/test_scheduler_euler_ancestral.py";
const HEUN: &str = "tests/schedulers/test_scheduler_heun.py";
const LMS: &str = "tests/schedulers/test_scheduler_lms.py";
const KDPM2: &str = "tests/schedulers/test_scheduler_kdpm2_discrete.py";
const KDPM2_A: &str = "tests/schedulers/test_scheduler_kdpm2_ancestral.py";
const EDM: &str = "tests/schedulers/test_scheduler_edm_euler.py";
const KARRAS: &str = "Karras et al. 2022, equation 5, computed apart from this program";

/// `arange(768).reshape(3, 8, 8, 4) / 768`, last axis first, or the same backwards.
fn dummy(backwards: bool) -> Tensor {
    let values = (0..768).map(|i| if backwards { 767 - i } else { i } as f32 / 768.0);
    let values: Vec<f32> = values.collect();
    let x = Tensor::from_vec(values, (3, 8, 8, 4), &Device::Cpu).unwrap();
    x.permute((3, 0, 1, 2)).unwrap().contiguous().unwrap()
}

/// The dummy network of the tests.
fn network(x: &Tensor, time: &[f64]) -> ddpm_core::Result<Tensor> {
    Ok((x * (time[0] / (time[0] + 1.0)))?)
}

/// The sum and the mean of |x|, as the tests print them.
fn sum_and_mean(x: &Tensor) -> [f64; 2] {
    let x = x.to_dtype(DType::F64).unwrap().abs().unwrap();
    let sum: f64 = x.sum_all().unwrap().to_scalar().unwrap();
    [sum, sum / x.elem_count() as f64]
}

/// Rows for the sum (to 1e-2) and the mean (to 1e-3); a sum that the test does not have is NaN.
fn row(what: &str, source: &'static str, [sum, mean]: [f64; 2], x: &Tensor) -> Vec<Row> {
    let [our_sum, our_mean] = sum_and_mean(x);
    let row = |name: &str, expected, ours, tolerance| Row {
        what: format!("{what}: {name} of absolute values"),
        source,
        expected,
        ours,
        tolerance,
    };
    let rows = vec![
        row("sum", sum, our_sum, 1e-2),
        row("mean", mean, our_mean, 1e-3),
    ];
    rows.into_iter()
        .filter(|row| !row.expected.is_nan())
        .collect()
}

fn config(class: &str, keys: Value) -> SchedulerConfig {
    let mut keys = keys;
    keys["_class_name"] = json!(class);
    SchedulerConfig::from_json(&keys.to_string()).unwrap()
}

fn sampler(class: &str, keys: Value, steps: Steps) -> Sampler {
    let choice = Choice {
        steps,
        ..Choice::steps(1).as_diffusers()
    };
    config(class, keys).sampler(&choice).unwrap()
}

fn end(sampler: &Sampler, x: &Tensor) -> Tensor {
    let mut noise = TorchGenerator::new(0);
    let step = sampler.walk(&network, x, &mut noise).last();
    step.unwrap().unwrap().x
}

/// DDPM, DDIM and its inverse, PNDM.
fn on_steps() -> Vec<Row> {
    let walk = |class: &str, keys: Value, n: usize| {
        end(&sampler(class, keys, Steps::Number(n)), &dummy(false))
    };
    let v = || json!({"prediction_type": "v_prediction"});
    let one = |set: bool| json!({"set_alpha_to_one": set, "beta_start": 0.01});
    let (ddpm, ddim, inverse, pndm) = (
        "DDPMScheduler",
        "DDIMScheduler",
        "DDIMInverseScheduler",
        "PNDMScheduler",
    );
    let mut rows = Vec::new();
    let mut add = |what: &str, source, expected, x: Tensor| {
        rows.extend(row(what, source, expected, &x));
    };
    add(
        "DDPM",
        DDPM,
        [258.9606, 0.3372],
        walk(ddpm, json!({}), 1000),
    );
    add("DDPM, v", DDPM, [202.0296, 0.2631], walk(ddpm, v(), 1000));
    let noisy = from_noise(ddpm, &[1, 0]);
    add("DDPM from step T - 2", DDPM, [387.9466, 0.5051], noisy);
    add(
        "DDIM",
        DDIM,
        [172.0067, 0.223967],
        walk(ddim, json!({}), 10),
    );
    add("DDIM, v", DDIM, [52.5302, 0.0684], walk(ddim, v(), 10));
    add(
        "DDIM to alpha 1",
        DDIM,
        [149.8295, 0.1951],
        walk(ddim, one(true), 10),
    );
    add(
        "DDIM to alpha_1",
        DDIM,
        [149.0784, 0.1941],
        walk(ddim, one(false), 10),
    );
    let noisy = from_noise(ddim, &[100, 0]);
    add("DDIM from step 8", DDIM, [354.5418, 0.4616], noisy);
    add(
        "DDIM inverse",
        INVERSE,
        [671.6816, 0.8746],
        walk(inverse, json!({}), 10),
    );
    add(
        "DDIM inverse, v",
        INVERSE,
        [1394.2185, 1.8154],
        walk(inverse, v(), 10),
    );
    add(
        "DDIM inverse from alpha 1",
        INVERSE,
        [539.9622, 0.7031],
        walk(inverse, one(true), 10),
    );
    add(
        "DDIM inverse from alpha_1",
        INVERSE,
        [542.6722, 0.7066],
        walk(inverse, one(false), 10),
    );
    add("PNDM", PNDM, [198.1318, 0.2580], walk(pndm, json!({}), 10));
    add("PNDM, v", PNDM, [67.3986, 0.0878], walk(pndm, v(), 10));
    add(
        "PNDM to alpha 1",
        PNDM,
        [230.0399, 0.2995],
        walk(pndm, one(true), 10),
    );
    add(
        "PNDM to alpha_1",
        PNDM,
        [186.9482, 0.2434],
        walk(pndm, one(false), 10),
    );
    rows
}

/// From the dummy sample with noise added at the first of these times.
fn from_noise(class: &str, times: &[usize]) -> Tensor {
    let sampler = sampler(class, json!({}), Steps::Times(times.to_vec()));
    let (Sampler::Ancestral(process, _) | Sampler::Ddim(process, _)) = &sampler else {
        panic!("{class} has no steps");
    };
    let (schedule, t) = (&process.schedule, process.schedule.last());
    let x = q_sample(schedule, &dummy(false), &[t; 4], &dummy(true)).unwrap();
    end(&sampler, &x)
}

/// DPM-Solver++, UniPC and DEIS.
fn multistep() -> Vec<Row> {
    let (multi, single, unipc, deis) = (
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    );
    let of = |class: &str, more: Value| {
        let mut keys = json!({"final_sigmas_type": "sigma_min"});
        if class != unipc {
            keys["lower_order_final"] = json!(false);
        }
        if class == deis {
            keys = json!({});
        }
        for (key, value) in more.as_object().unwrap() {
            keys[key] = value.clone();
        }
        sampler(class, keys, Steps::Number(10))
    };
    let v = json!({"prediction_type": "v_prediction"});
    let karras = json!({"use_karras_sigmas": true});
    let both = json!({"use_karras_sigmas": true, "prediction_type": "v_prediction"});
    let lu = json!({"use_lu_lambdas": true, "prediction_type": "v_prediction"});
    let threshold =
        json!({"thresholding": true, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5});
    let means = [
        ("DPM-Solver++ multistep", MULTI, multi, json!({}), 0.3301),
        ("DPM-Solver++ multistep, v", MULTI, multi, v.clone(), 0.2251),
        (
            "DPM-Solver++ multistep, Karras, v",
            MULTI,
            multi,
            both.clone(),
            0.2096,
        ),
        ("DPM-Solver++ multistep, Lu, v", MULTI, multi, lu, 0.1554),
        (
            "DPM-Solver++ multistep, threshold",
            MULTI,
            multi,
            threshold,
            1.1364,
        ),
        ("DPM-Solver++ singlestep", SINGLE, single, json!({}), 0.2791),
        (
            "DPM-Solver++ singlestep, v",
            SINGLE,
            single,
            v.clone(),
            0.1453,
        ),
        (
            "DPM-Solver++ singlestep, Karras",
            SINGLE,
            single,
            karras.clone(),
            0.2248,
        ),
        (
            "DPM-Solver++ singlestep, Karras, v",
            SINGLE,
            single,
            both.clone(),
            0.0649,
        ),
        ("UniPC", UNIPC, unipc, json!({}), 0.2464),
        ("UniPC, v", UNIPC, unipc, v.clone(), 0.1014),
        ("UniPC, Karras", UNIPC, unipc, karras, 0.2925),
        ("UniPC, Karras, v", UNIPC, unipc, both, 0.1966),
        ("DEIS", DEIS, deis, json!({}), 0.23916),
        ("DEIS, v", DEIS, deis, v, 0.091),
    ];
    let mut rows = Vec::new();
    for (what, source, class, keys, mean) in means {
        let x = end(&of(class, keys), &dummy(false));
        rows.extend(row(what, source, [f64::NAN, mean], &x));
    }
    let from_the_middle = [
        (
            "DPM-Solver++ multistep from step 5",
            MULTI,
            multi,
            5,
            [318.4111, 0.4146],
        ),
        (
            "DPM-Solver++ singlestep from step 5",
            SINGLE,
            single,
            5,
            [269.2187, 0.3505],
        ),
        ("UniPC from step 8", UNIPC, unipc, 8, [315.5757, 0.4109]),
        ("DEIS from step 8", DEIS, deis, 8, [315.3016, 0.41054]),
    ];
    for (what, source, class, first, expected) in from_the_middle {
        let mut sampler = of(class, json!({}));
        let levels = levels(&mut sampler);
        let sigma = levels.sigmas()[first];
        *levels = levels.clone().from_step(first);
        let signal = 1.0 / sigma.hypot(1.0);
        let x = (dummy(false) + (dummy(true) * sigma).unwrap()).unwrap();
        let x = end(&sampler, &(x * signal).unwrap());
        rows.extend(row(what, source, expected, &x));
    }
    rows
}

fn levels(sampler: &mut Sampler) -> &mut Levels {
    match sampler {
        Sampler::Dpm(levels, _)
        | Sampler::DpmSinglestep(levels, _)
        | Sampler::UniPc(levels, _)
        | Sampler::Deis(levels, ..)
        | Sampler::Lms(levels, _)
        | Sampler::Euler(levels)
        | Sampler::EulerAncestral(levels)
        | Sampler::Heun(levels)
        | Sampler::Kdpm2(levels)
        | Sampler::Kdpm2Ancestral(levels) => levels,
        other => panic!("{other:?} has no levels"),
    }
}

/// Euler and its relatives, T = 1100. Their tests hand the images scaled for the network to the step as well, which so shrinks them
/// every time; the walk is made to do the same by images put into it. The second question of a step sees them as they are.
fn exploding() -> Vec<Row> {
    let (euler, ancestral, heun, lms, kdpm2, kdpm2_a) = (
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    );
    let plain = json!({});
    let v = json!({"prediction_type": "v_prediction"});
    let karras = json!({"use_karras_sigmas": true});
    let walks = [
        ("Euler", EULER, euler, &plain, 0, [10.0807, 0.0131]),
        ("Euler, v", EULER, euler, &v, 0, [0.0002, 2.2676e-6]),
        (
            "Euler, Karras",
            EULER,
            euler,
            &karras,
            0,
            [124.522995, 0.162139],
        ),
        (
            "Euler from step 8",
            EULER,
            euler,
            &plain,
            8,
            [57062.9297, 74.3007],
        ),
        (
            "Euler ancestral",
            ANCESTRAL,
            ancestral,
            &plain,
            0,
            [152.3192, 0.1983],
        ),
        (
            "Euler ancestral, v",
            ANCESTRAL,
            ancestral,
            &v,
            0,
            [108.4439, 0.1412],
        ),
        (
            "Euler ancestral from step 8",
            ANCESTRAL,
            ancestral,
            &plain,
            8,
            [56163.0508, 73.1290],
        ),
        ("Heun", HEUN, heun, &plain, 0, [0.1233, 0.0002]),
        ("Heun, Karras", HEUN, heun, &karras, 0, [f64::NAN, 0.00015]),
        (
            "Heun from step 8",
            HEUN,
            heun,
            &plain,
            8,
            [75074.8906, 97.7538],
        ),
        ("LMS", LMS, lms, &plain, 0, [1006.388, 1.31]),
        ("LMS, v", LMS, lms, &v, 0, [0.0017, 2.2676e-6]),
        ("LMS, Karras", LMS, lms, &karras, 0, [3812.9927, 4.9648]),
        (
            "LMS from step 8",
            LMS,
            lms,
            &plain,
            8,
            [27663.6895, 36.0204],
        ),
        ("KDPM2", KDPM2, kdpm2, &plain, 0, [20.4125, 0.0266]),
        (
            "KDPM2 from step 8",
            KDPM2,
            kdpm2,
            &plain,
            8,
            [70408.4062, 91.6776],
        ),
        (
            "KDPM2 ancestral",
            KDPM2_A,
            kdpm2_a,
            &plain,
            0,
            [13979.9433, 18.2030],
        ),
    ];
    let mut rows = Vec::new();
    for (what, source, class, keys, first, expected) in walks {
        let mut keys = keys.clone();
        for (key, value) in [
            ("num_train_timesteps", json!(1100)),
            ("beta_start", json!(1e-4)),
            ("beta_end", json!(0.02)),
        ] {
            keys[key] = value;
        }
        let x = shrinking(sampler(class, keys, Steps::Number(10)), first);
        rows.extend(row(what, source, expected, &x));
    }
    rows
}

fn shrinking(mut sampler: Sampler, first: usize) -> Tensor {
    let sigmas = levels(&mut sampler).sigmas();
    *levels(&mut sampler) = levels(&mut sampler).clone().from_step(first);
    let signal = |i: usize| 1.0 / sigmas[i].hypot(1.0);
    let (step, asked) = (Cell::new(first), Cell::new(false));
    let seeing = |x: &Tensor, time: &[f64]| -> ddpm_core::Result<Tensor> {
        match asked.replace(true) {
            true => network(x, time),
            false => network(&(x / signal(step.get()))?, time),
        }
    };
    let mut noise = TorchGenerator::new(0);
    let mut x = dummy(false);
    if first > 0 {
        // The tests add the noise of step 8 to a sample that they have already made as large as that of step 0.
        let noise = (dummy(true) * sigmas[first]).unwrap();
        let noisy = ((x * sigmas[0]).unwrap() + noise).unwrap();
        x = (noisy * signal(first)).unwrap();
    }
    let source: &mut dyn NoiseSource = &mut noise;
    let mut walk = sampler.walk(&seeing, &x, source);
    loop {
        walk.put(&(&x * signal(step.get())).unwrap());
        asked.set(false);
        let Some(done) = walk.next() else { break x };
        x = done.unwrap().x;
        step.set(step.get() + 1);
    }
}

fn edm() -> Vec<Row> {
    let class = "EDMEulerScheduler";
    let keys = json!({"num_train_timesteps": 256});
    let sampler = sampler(class, keys, Steps::Number(10));
    let x = end(&sampler, &dummy(false));
    let [sum, mean] = sum_and_mean(&x);
    let row = |what: &str, expected, ours| Row {
        what: format!("EDM Euler: {what} of absolute values"),
        source: EDM,
        expected,
        ours,
        tolerance: 1e-3,
    };
    vec![row("sum", 34.1855, sum), row("mean", 0.044, mean)]
}

/// Timesteps, sigmas, variances and alpha-bar.
fn tables() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut offset = sampler(
        "DDIMScheduler",
        json!({"steps_offset": 1}),
        Steps::Number(5),
    );
    rows.extend(Row::slice(
        "DDIM, timesteps with offset 1",
        DDIM,
        &[801.0, 601.0, 401.0, 201.0, 1.0],
        &times(&mut offset),
        0.0,
    ));
    let keys = json!({"steps_offset": 1});
    let mut inverse = sampler("DDIMInverseScheduler", keys, Steps::Number(5));
    rows.extend(Row::slice(
        "DDIM inverse, timesteps with offset 1",
        INVERSE,
        &[1.0, 201.0, 401.0, 601.0, 801.0],
        &times(&mut inverse),
        0.0,
    ));
    let flow = json!({"use_flow_sigmas": true, "use_karras_sigmas": true, "prediction_type": "flow_prediction",
        "sigma_min": 0.01, "sigma_max": 200.0});
    let mut flow = sampler("UniPCMultistepScheduler", flow, Steps::Number(5));
    let expected = [
        0.9950248599,
        0.9787454605,
        0.8774884343,
        0.3604971766,
        0.0099009862,
        0.0,
    ];
    let ours = levels(&mut flow).sigmas();
    rows.extend(Row::slice(
        "UniPC, sigmas of a flow by Karras",
        UNIPC,
        &expected,
        &ours,
        1e-6,
    ));
    let mut edm = sampler("EDMEulerScheduler", json!({}), Steps::Number(18));
    let expected = [
        80.0, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822,
        1.923340, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002, 0.0,
    ];
    let ours = levels(&mut edm).sigmas();
    rows.extend(Row::slice("EDM, 18 sigmas", KARRAS, &expected, &ours, 1e-6));
    rows.extend(variances());
    rows
}

/// What the network is told.
fn times(sampler: &mut Sampler) -> Vec<f64> {
    let mut noise = TorchGenerator::new(0);
    let walk = sampler.walk(&network, &dummy(false), &mut noise);
    walk.map(|step| step.unwrap().time).collect()
}

/// `_get_variance`, times counted from 0.
fn variances() -> Vec<Row> {
    let schedule = Schedule::linear(1000, 1e-4, 0.02).unwrap();
    let at = |time: usize| schedule.timestep_at_network_time(time).unwrap();
    let ddpm = [0, 487, 999].map(|time| schedule.beta_tilde(at(time)));
    let mut rows = Row::slice(
        "DDPM, variance at 0, 487, 999",
        DDPM,
        &[0.0, 0.00979, 0.02],
        &ddpm,
        1e-5,
    );
    let jumps = [(420, 400), (980, 960), (487, 486), (999, 998)];
    let ddim = jumps.map(|(from, to)| {
        let two = schedule.respaced_at(&[at(to), at(from)]).unwrap();
        two.beta_tilde(two.last())
    });
    rows.extend(Row::slice(
        "DDIM, variance from 420 to 400, 980 to 960, 487 to 486, 999 to 998",
        DDIM,
        &[0.14771, 0.32460, 0.00979, 0.02],
        &ddim,
        1e-5,
    ));
    rows
}
