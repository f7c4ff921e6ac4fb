//! Group normalisation on a card: a block a group of an image, forward and backward.

use candle_core::Result;

use super::launch::{Address, Kind, Launch, Machine, SHARED_BYTES, WARP, arguments, kernel, whole};
use super::sums::column_sums;

/// The sizes of a normalisation; gamma, beta and their gradients are always f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// Of x, y and their gradients.
    pub(crate) kind: Kind,
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) pixels: usize,
    pub(crate) groups: usize,
    /// Whether each image has a gamma and beta of its own.
    pub(crate) own: bool,
    pub(crate) silu: bool,
    pub(crate) eps: f64,
}

/// How a group is divided among warps.
#[derive(Clone, Copy, Debug)]
struct Division {
    warps: u32,
    /// Pieces of each channel, so that every warp has one.
    pieces: u32,
}

impl Norm {
    fn per_group(&self) -> usize {
        self.channels / self.groups
    }

    /// Eight elements a thread where there are that many, 2 to 16 warps.
    fn division(&self) -> Division {
        let length = self.per_group() * self.pixels;
        let warps = (length / (8 * WARP as usize))
            .next_power_of_two()
            .clamp(2, 16);
        self.divided_among(warps)
    }

    fn divided_among(&self, warps: usize) -> Division {
        let pieces = warps
            .div_ceil(self.per_group())
            .min(self.pixels.div_ceil(WARP as usize));
        Division {
            warps: warps as u32,
            pieces: pieces as u32,
        }
    }

    /// y, and mean and 1 / √(variance + eps) of each group.
    pub(crate) fn forward<M: Machine>(
        &self,
        machine: &M,
        x: Address,
        gamma: Address,
        beta: Address,
    ) -> Result<(M::Memory, M::Memory)> {
        self.forward_by(machine, self.division(), x, gamma, beta)
    }

    fn forward_by<M: Machine>(
        &self,
        machine: &M,
        division: Division,
        x: Address,
        gamma: Address,
        beta: Address,
    ) -> Result<(M::Memory, M::Memory)> {
        let (channels, pixels) = (self.per_group(), self.pixels);
        let length = whole("elements of a group", channels * pixels)?;
        let staged = 4 * (division.warps as usize + length as usize) <= SHARED_BYTES as usize;
        let blocks = self.batch * self.groups;
        let y = machine.allocate(self.kind, self.batch * self.channels * pixels)?;
        let statistics = machine.allocate(Kind::F32, 2 * blocks)?;
        let launch = Launch {
            grid: [whole("groups", blocks)?, 1],
            block: division.warps * WARP,
            shared: 4 * (division.warps + if staged { length } else { 0 }),
        };
        machine.launch(
            kernel!(self.kind, "group_norm"),
            launch,
            arguments![
                x,
                gamma,
                beta,
                machine.address(&y),
                machine.address(&statistics),
                channels as u32,
                whole("groups", self.groups)?,
                pixels as u32,
                division.pieces,
                self.own,
                self.silu,
                staged,
                self.eps as f32,
            ],
        )?;
        Ok((y, statistics))
    }

    /// dL/dx, dL/dgamma and dL/dbeta from g = dL/dy.
    pub(crate) fn backward<M: Machine>(
        &self,
        machine: &M,
        x: Address,
        gamma: Address,
        beta: Address,
        statistics: Address,
        g: Address,
    ) -> Result<[M::Memory; 3]> {
        self.backward_by(machine, self.division(), x, gamma, beta, statistics, g)
    }

    fn backward_by<M: Machine>(
        &self,
        machine: &M,
        division: Division,
        x: Address,
        gamma: Address,
        beta: Address,
        statistics: Address,
        g: Address,
    ) -> Result<[M::Memory; 3]> {
        let (channels, pixels) = (self.per_group(), self.pixels);
        whole("elements of a group", channels * pixels)?;
        let dx = machine.allocate(self.kind, self.batch * self.channels * pixels)?;
        let dgamma = machine.allocate(Kind::F32, self.batch * self.channels)?;
        let dbeta = machine.allocate(Kind::F32, self.batch * self.channels)?;
        let launch = Launch {
            grid: [whole("groups", self.batch * self.groups)?, 1],
            block: division.warps * WARP,
            shared: 4 * (2 * whole("pieces", channels * division.pieces as usize)? + 2),
        };
        machine.launch(
            kernel!(self.kind, "group_norm_gradient"),
            launch,
            arguments![
                x,
                gamma,
                beta,
                statistics,
                g,
                machine.address(&dx),
                machine.address(&dgamma),
                machine.address(&dbeta),
                channels as u32,
                whole("groups", self.groups)?,
                pixels as u32,
                division.pieces,
                self.own,
                self.silu,
            ],
        )?;
        if self.own || self.batch == 1 {
            return Ok([dx, dgamma, dbeta]);
        }
        let over_batch = |sums: M::Memory| {
            column_sums(
                machine,
                Kind::F32,
                machine.address(&sums),
                self.batch,
                self.channels,
            )
        };
        Ok([dx, over_batch(dgamma)?, over_batch(dbeta)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

    struct Expected {
        y: Vec<f64>,
        dx: Vec<f64>,
        dgamma: Vec<f64>,
        dbeta: Vec<f64>,
    }

    /// The formulas in double precision.
    fn expected(norm: &Norm, x: &[f32], gamma: &[f32], beta: &[f32], g: &[f32]) -> Expected {
        let (per_group, pixels) = (norm.per_group(), norm.pixels);
        let length = per_group * pixels;
        let mut e = Expected {
            y: vec![],
            dx: vec![],
            dgamma: vec![0.0; gamma.len()],
            dbeta: vec![0.0; gamma.len()],
        };
        for (group, (x, g)) in x.chunks(length).zip(g.chunks(length)).enumerate() {
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            let mean = x.iter().sum::<f64>() / length as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / length as f64;
            let inverse = 1.0 / (variance + norm.eps).sqrt();
            let mut gamma_h = Vec::new();
            for (i, (x, &g)) in x.iter().zip(g).enumerate() {
                let place = (group * per_group + i / pixels) % gamma.len();
                let hat = (x - mean) * inverse;
                let z = f64::from(gamma[place]) * hat + f64::from(beta[place]);
                let s = 1.0 / (1.0 + (-z).exp());
                e.y.push(if norm.silu { z * s } else { z });
                let h = f64::from(g)
                    * if norm.silu {
                        s * (1.0 + z * (1.0 - s))
                    } else {
                        1.0
                    };
                e.dgamma[place] += h * hat;
                e.dbeta[place] += h;
                gamma_h.push((f64::from(gamma[place]) * h, hat));
            }
            let mean_h = gamma_h.iter().map(|(h, _)| h).sum::<f64>() / length as f64;
            let mean_h_hat = gamma_h.iter().map(|(h, hat)| h * hat).sum::<f64>() / length as f64;
            let dx = gamma_h
                .iter()
                .map(|(h, hat)| inverse * (h - mean_h - hat * mean_h_hat));
            e.dx.extend(dx);
        }
        e
    }

    fn check(norm: Norm, division: Option<Division>, offset: f32) {
        for kind in KINDS {
            check_of(Norm { kind, ..norm }, division, offset);
        }
    }

    fn check_of(norm: Norm, division: Option<Division>, offset: f32) {
        let kind = norm.kind;
        let affine = if norm.own {
            norm.batch * norm.channels
        } else {
            norm.channels
        };
        let length = norm.batch * norm.channels * norm.pixels;
        let x: Vec<f32> = wave(length, 1).iter().map(|x| x + offset).collect();
        let x = kept(kind, &x);
        let g = kept(kind, &wave(length, 2));
        let (gamma, beta) = (wave(affine, 3), wave(affine, 4));
        let division = division.unwrap_or_else(|| norm.division());
        let ran = Host::both_ways(|host| {
            let images = [&x, &g].map(|input| host.numbers(kind, input));
            let affine = [&gamma, &beta].map(|input| host.floats(input));
            let [x, g] = images.each_ref().map(|input| host.address(input));
            let [gamma, beta] = affine.each_ref().map(|input| host.address(input));
            let (y, statistics) = norm.forward_by(host, division, x, gamma, beta)?;
            let of_statistics = host.address(&statistics);
            let gradients = norm.backward_by(host, division, x, gamma, beta, of_statistics, g)?;
            Ok([y].iter().chain(&gradients).map(Memory::read).collect())
        });
        let Some(ran) = ran else { return };
        let e = expected(&norm, &x, &gamma, &beta, &g);
        let what = format!("{norm:?}, {division:?}");
        let loose = if offset == 0.0 { 1.0 } else { 300.0 };
        assert_near(
            &format!("y of {what}"),
            &ran[0],
            &e.y,
            allowed(kind, 2e-6 * loose),
        );
        assert_near(
            &format!("dx of {what}"),
            &ran[1],
            &e.dx,
            allowed(kind, 4e-6 * loose),
        );
        assert_near(
            &format!("dgamma of {what}"),
            &ran[2],
            &e.dgamma,
            4e-6 * loose,
        );
        assert_near(&format!("dbeta of {what}"), &ran[3], &e.dbeta, 4e-6 * loose);
    }

    const NORM: Norm = Norm {
        kind: Kind::F32,
        batch: 3,
        channels: 12,
        pixels: 35,
        groups: 4,
        own: false,
        silu: true,
        eps: 1e-3,
    };

    #[test]
    fn groups_of_odd_sizes() {
        for (channels, groups) in [(12, 4), (12, 12), (12, 1), (66, 2)] {
            for pixels in [1, 7, 35, 64] {
                check(
                    Norm {
                        channels,
                        groups,
                        pixels,
                        ..NORM
                    },
                    None,
                    0.0,
                );
            }
        }
    }

    #[test]
    fn affine_maps_of_each_image_and_no_silu() {
        for (own, silu) in [(true, true), (true, false), (false, false)] {
            check(Norm { own, silu, ..NORM }, None, 0.0);
            check(
                Norm {
                    own,
                    silu,
                    batch: 1,
                    pixels: 300,
                    ..NORM
                },
                None,
                0.0,
            );
        }
    }

    #[test]
    fn any_number_of_warps() {
        for warps in [1, 2, 3, 5, 16, 32] {
            check(NORM, Some(NORM.divided_among(warps)), 0.0);
            let few = Norm {
                pixels: 217,
                groups: 12,
                batch: 2,
                ..NORM
            };
            check(few, Some(few.divided_among(warps)), 0.0);
        }
    }

    /// 13,200 elements are too many to be staged.
    #[test]
    fn a_group_larger_than_shared_memory() {
        check(
            Norm {
                batch: 1,
                channels: 6,
                pixels: 4400,
                groups: 2,
                ..NORM
            },
            None,
            0.0,
        );
    }

    #[test]
    fn a_mean_far_from_zero() {
        check_of(NORM, None, 500.0);
    }
}
