//! tmp
#![allow(clippy::all)]
use candle_core::{Device, Tensor};
use ddpm_kernels::{AdamW, Gradients, optimise};
use ddpm_unet::*;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (name, b, n) = (
        a[1].as_str(),
        a[2].parse::<usize>().unwrap(),
        a[3].parse::<usize>().unwrap(),
    );
    let (config, c, h) = if name == "s" {
        (
            UNetConfig::new(
                UNetSettings {
                    in_channels: 1,
                    out_channels: 1,
                    ..UNetSettings::ho()
                }
                .with_levels(&[(32, false), (64, true), (128, false)]),
            )
            .unwrap(),
            1,
            28,
        )
    } else {
        (
            UNetConfig::new(UNetSettings {
                dropout: 0.0,
                ..UNetConfig::ddpm_cifar10().settings().clone()
            })
            .unwrap(),
            3,
            32,
        )
    };
    let w = initialise(&config, Initialisation::PyTorch, 1, &Device::Cpu).unwrap();
    let net = UNet::new(&config, &w).unwrap();
    let x = Tensor::from_vec(
        (0..b * c * h * h)
            .map(|i| ((i * 7919) % 2003) as f32 / 1000. - 1.)
            .collect::<Vec<_>>(),
        (b, c, h, h),
        &Device::Cpu,
    )
    .unwrap();
    let t: Vec<f64> = (0..b).map(|i| (i * 13 % 1000) as f64).collect();
    let frozen = net.frozen();
    let mut e = vec![];
    for _ in 0..n {
        let t0 = Instant::now();
        frozen.forward(&x, &t).unwrap();
        e.push(t0.elapsed().as_secs_f64());
    }
    println!(
        "eval {:?}",
        e.iter()
            .map(|v| (b as f64 / v * 10.).round() / 10.)
            .collect::<Vec<_>>()
    );
    if a.len() > 4 {
        return;
    }
    let shapes: Vec<Vec<usize>> = config.parameters().into_iter().map(|p| p.1).collect();
    let mut g = Gradients::zeros(&shapes);
    let p: Vec<Tensor> = w.iter().map(|p| p.1.clone()).collect();
    let m: Vec<Tensor> = p.iter().map(|p| p.zeros_like().unwrap()).collect();
    let v: Vec<Tensor> = p.iter().map(|p| p.zeros_like().unwrap()).collect();
    let im: Vec<u64> = (0..b as u64).collect();
    let d = DropoutAddress {
        seed: 1,
        step: 0,
        images: &im,
    };
    let mut tr = vec![];
    for i in 0..n {
        let t0 = Instant::now();
        net.learn(&x, &t, &d, (&mut g, false), |y| {
            Ok::<_, Error>((y * 0.001).unwrap())
        })
        .unwrap();
        let norm = g.sum_of_squares().sqrt();
        let ad = AdamW {
            learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: i as u64 + 1,
        };
        optimise((&p, &m, &v), &g, (1.0 / norm).min(1.0), &ad, &[]).unwrap();
        tr.push(t0.elapsed().as_secs_f64());
    }
    println!(
        "train {:?}",
        tr.iter()
            .map(|v| (b as f64 / v * 10.).round() / 10.)
            .collect::<Vec<_>>()
    );
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", s.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
