//! The 256 colours that fit a picture best: boxes cut where the error is largest, then moved to the means of what they
//! attract (Lloyd 1982).

/// Colours, at most 256, and for each pixel of `rgb` the number of its nearest. Exact where there are no more colours.
pub(crate) fn palette(rgb: &[u8]) -> (Vec<[u8; 3]>, Vec<u8>) {
    let pixels = || rgb.chunks_exact(3).map(|p| [p[0], p[1], p[2]]);
    let mut colours: Vec<[u8; 3]> = pixels().collect();
    colours.sort_unstable();
    colours.dedup();
    if colours.len() > MOST {
        colours = fitted(pixels());
    }
    let nearest = Nearest::of(&colours);
    let indices = pixels().map(|p| nearest.index(p.map(i32::from)) as u8);
    let indices = indices.collect();
    (colours, indices)
}

/// What an index of one byte can name.
const MOST: usize = 256;

/// How often the colours are moved; more changes little.
const MOVES: usize = 3;

/// Pixels whose colours agree in their leading five bits.
#[derive(Clone, Copy, Default)]
struct Bin {
    count: f64,
    mean: [f64; 3],
}

/// Bins that will share a colour.
struct Cut {
    bins: Vec<Bin>,
    mean: [f64; 3],
    /// The sum of squares around the mean, by channel.
    spread: [f64; 3],
}

fn fitted(pixels: impl Iterator<Item = [u8; 3]>) -> Vec<[u8; 3]> {
    let bins = bins(pixels);
    let mut cuts = vec![Cut::of(bins.clone())];
    while cuts.len() < MOST {
        let total = |cut: &Cut| cut.spread.iter().sum::<f64>();
        let worst = (0..cuts.len()).max_by(|a, b| total(&cuts[*a]).total_cmp(&total(&cuts[*b])));
        let Some(worst) = worst.filter(|&worst| cuts[worst].bins.len() > 1) else {
            break; // what is left of the error lies within bins
        };
        let (low, high) = cuts.swap_remove(worst).halves();
        cuts.extend([low, high]);
    }
    let mut colours: Vec<[f64; 3]> = cuts.iter().map(|cut| cut.mean).collect();
    for _ in 0..MOVES {
        move_to_means(&mut colours, &bins);
    }
    let mut colours: Vec<[u8; 3]> = colours.into_iter().map(whole).collect();
    colours.sort_unstable();
    colours.dedup();
    colours
}

fn bins(pixels: impl Iterator<Item = [u8; 3]>) -> Vec<Bin> {
    let mut bins = vec![Bin::default(); 1 << 15];
    for pixel in pixels {
        let place = pixel
            .iter()
            .fold(0, |place, c| place << 5 | usize::from(c >> 3));
        let bin = &mut bins[place];
        bin.count += 1.0;
        for (mean, value) in bin.mean.iter_mut().zip(pixel) {
            *mean += (f64::from(value) - *mean) / bin.count;
        }
    }
    bins.retain(|bin| bin.count > 0.0);
    bins
}

impl Cut {
    fn of(bins: Vec<Bin>) -> Self {
        let count: f64 = bins.iter().map(|bin| bin.count).sum();
        let over = |f: &dyn Fn(&Bin, usize) -> f64| -> [f64; 3] {
            std::array::from_fn(|c| bins.iter().map(|bin| bin.count * f(bin, c)).sum())
        };
        let mean = over(&|bin, c| bin.mean[c]).map(|sum| sum / count);
        let spread = over(&|bin, c| (bin.mean[c] - mean[c]).powi(2));
        Self { bins, mean, spread }
    }

    /// Cut at the mean, across the channel in which it spreads most; each half has a bin, because there are two or more.
    fn halves(self) -> (Self, Self) {
        let widest = (0..3).max_by(|a, b| self.spread[*a].total_cmp(&self.spread[*b]));
        let c = widest.unwrap_or(0);
        let mut bins = self.bins;
        bins.sort_by(|a, b| a.mean[c].total_cmp(&b.mean[c]));
        let below = bins.partition_point(|bin| bin.mean[c] < self.mean[c]);
        let high = bins.split_off(below.clamp(1, bins.len() - 1));
        (Self::of(bins), Self::of(high))
    }
}

/// Every colour becomes the mean of the bins nearest to it; one that attracts none stays.
fn move_to_means(colours: &mut [[f64; 3]], bins: &[Bin]) {
    let rounded: Vec<[u8; 3]> = colours.iter().copied().map(whole).collect();
    let nearest = Nearest::of(&rounded);
    let mut sums = vec![Bin::default(); colours.len()];
    for bin in bins {
        let sum = &mut sums[nearest.index(bin.mean.map(|x| x.round() as i32))];
        sum.count += bin.count;
        for (mean, value) in sum.mean.iter_mut().zip(bin.mean) {
            *mean += (value - *mean) * bin.count / sum.count;
        }
    }
    for (colour, sum) in colours.iter_mut().zip(sums) {
        if sum.count > 0.0 {
            *colour = sum.mean;
        }
    }
}

fn whole(colour: [f64; 3]) -> [u8; 3] {
    colour.map(|x| x.round() as u8)
}

/// Finds the nearest of at most 256 colours.
struct Nearest {
    channels: [[i32; MOST]; 3],
}

impl Nearest {
    /// Of at least one colour.
    fn of(colours: &[[u8; 3]]) -> Self {
        // Behind the last there is the first once more, which is never nearer than itself.
        let value = |k: usize, c: usize| i32::from(colours.get(k).unwrap_or(&colours[0])[c]);
        Self {
            channels: std::array::from_fn(|c| std::array::from_fn(|k| value(k, c))),
        }
    }

    /// The first of those that are nearest.
    fn index(&self, colour: [i32; 3]) -> usize {
        let [reds, greens, blues] = &self.channels;
        let mut best = i32::MAX;
        for k in 0..MOST {
            let (r, g, b) = (
                reds[k] - colour[0],
                greens[k] - colour[1],
                blues[k] - colour[2],
            );
            // At most 3 * 255 * 255: the distance and its number fit into one integer.
            best = best.min((r * r + g * g + b * b) << 8 | k as i32);
        }
        (best & 255) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rms(rgb: &[u8]) -> f64 {
        let (colours, indices) = palette(rgb);
        assert!(colours.len() <= 256);
        let shown = indices.iter().flat_map(|&i| colours[usize::from(i)]);
        let squares: f64 = shown
            .zip(rgb)
            .map(|(a, b)| (f64::from(a) - f64::from(*b)).powi(2))
            .sum();
        (squares / rgb.len() as f64).sqrt()
    }

    #[test]
    fn at_most_256_colours_are_exact() {
        let few: Vec<u8> = (0..=255u8).flat_map(|k| [k, 255 - k, k ^ 85]).collect();
        assert_eq!(palette(&few).0.len(), 256);
        assert_eq!(rms(&few), 0.0);
        assert_eq!(palette(&[1, 2, 3]), (vec![[1, 2, 3]], vec![0]));
    }

    #[test]
    fn many_colours_are_near_the_best_that_can_be() {
        // A plane of 4096 colours. The best 256 are squares of 4 x 4 of them: an error of 4.47 in two channels, 3.16 in one.
        let plane: Vec<u8> = (0..64 * 64u32)
            .flat_map(|k| {
                [
                    4 * (k % 64) as u8,
                    4 * (k / 64) as u8,
                    (2 * (k % 64) + 2 * (k / 64)) as u8,
                ]
            })
            .collect();
        let best = ((2.0 * 20.0 + 10.0) / 3.0f64).sqrt();
        let found = rms(&plane);
        assert!(found < 1.15 * best, "{found} against {best}");
    }
}
