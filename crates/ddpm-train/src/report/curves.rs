//! The numbers of a run as plots: thinned to what can be seen, and smoothed.

use ddpm_image::{Chart, Look, Scale, Series};

use super::nearest::{Likeness, Others};
use crate::MetricsLine;

/// (step, number).
type Points = Vec<(f64, f64)>;

/// The loss of every step, smoothed, and on images never trained on.
pub(super) fn loss(metrics: &[MetricsLine], data: &str) -> Chart {
    let each = points(metrics, |line| Some(line.loss));
    let held_out = points(metrics, |line| line.held_out_loss);
    let mut series = vec![
        named("each step", thinned(&each), Look::Faint, 0),
        named("smoothed", outline(&smoothed(&each)), Look::Line, 0),
    ];
    if !held_out.is_empty() {
        series.push(named("held-out", thinned(&held_out), Look::Dots, 1));
    }
    chart(&format!("Loss: {data}"), "loss", series)
}

/// The smoothed loss of each quarter of 1..=T.
pub(super) fn quarters(metrics: &[MetricsLine]) -> Chart {
    let names = [
        "first quarter of t: nearly clean",
        "second",
        "third",
        "last: nearly noise",
    ];
    let of = |quarter: usize| {
        points(metrics, move |line| {
            [line.loss_q1, line.loss_q2, line.loss_q3, line.loss_q4][quarter]
        })
    };
    let series = names.into_iter().enumerate().map(|(quarter, name)| {
        let line = outline(&smoothed(&of(quarter)));
        named(name, line, Look::Line, quarter)
    });
    chart("Loss by t, smoothed", "loss", series.collect())
}

/// Distances to the nearest training image, sorted: of samples, and of images that they are compared with.
pub(super) fn distances(likeness: &Likeness) -> Chart {
    let sorted = |numbers: &[f64]| -> Points {
        let share = |k: usize| 100.0 * (k as f64 + 0.5) / numbers.len() as f64;
        let all = numbers.iter().enumerate();
        all.map(|(k, distance)| (share(k), *distance)).collect()
    };
    let others = match likeness.compared_with {
        Others::HeldOut => "held-out images",
        Others::Training => "training images, to another one",
    };
    Chart {
        title: "Distance to the nearest training image".into(),
        x_label: "percent of the images, nearest first".into(),
        y_label: "distance".into(),
        y_scale: Scale::Linear,
        series: vec![
            named(others, sorted(&likeness.others), Look::Line, 5),
            named("samples", sorted(&likeness.distances), Look::Line, 0),
        ],
    }
}

/// Averages around every point, with weights that halve over a hundredth of the points to both sides: unlike one that only
/// looks back, they do not lag. The last can only look back.
pub(super) fn smoothed(points: &[(f64, f64)]) -> Points {
    let half_life = (points.len() as f64 / 100.0).max(1.0);
    let kept = 0.5f64.powf(1.0 / half_life);
    // Sums of the weighted numbers and of the weights, up to each point.
    let sums = |points: &mut dyn Iterator<Item = &(f64, f64)>| -> Points {
        let (mut sum, mut weight) = (0.0, 0.0);
        let step = |(_, y): &(f64, f64)| {
            (sum, weight) = (kept * sum + y, kept * weight + 1.0);
            (sum, weight)
        };
        points.map(step).collect()
    };
    let back = sums(&mut points.iter());
    let ahead = sums(&mut points.iter().rev());
    let both = points.iter().zip(back).zip(ahead.into_iter().rev());
    // The point itself is in both.
    both.map(|(((x, y), back), ahead)| (*x, (back.0 + ahead.0 - y) / (back.1 + ahead.1 - 1.0)))
        .collect()
}

/// The finite numbers of the lines that have one.
fn points(metrics: &[MetricsLine], number: impl Fn(&MetricsLine) -> Option<f64>) -> Points {
    let all = metrics.iter();
    let all = all.filter_map(|line| Some((line.step as f64, number(line)?)));
    all.filter(|(_, y)| y.is_finite()).collect()
}

/// More than can be told apart on a plot.
const PARTS: usize = 400;

/// The least and the greatest of every part, in their order: the same outline with fewer points.
fn thinned(points: &[(f64, f64)]) -> Points {
    if points.len() <= 2 * PARTS {
        return points.to_vec();
    }
    let ends = |part: &[(f64, f64)]| {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = [part.iter().min_by(by), part.iter().max_by(by)];
        let mut ends: Points = ends.into_iter().flatten().copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends
    };
    points
        .chunks(points.len().div_ceil(PARTS))
        .flat_map(ends)
        .collect()
}

/// The first, the last, and one of every part between.
fn outline(points: &[(f64, f64)]) -> Points {
    let every = points.len().div_ceil(PARTS).max(1);
    let last = points.len().saturating_sub(1);
    let all = points.iter().enumerate();
    let kept = all.filter(|(k, _)| k % every == 0 || *k == last);
    kept.map(|(_, point)| *point).collect()
}

fn named(name: &str, points: Points, look: Look, hue: usize) -> Series {
    Series {
        name: name.into(),
        points,
        look,
        hue,
    }
}

fn chart(title: &str, y_label: &str, series: Vec<Series>) -> Chart {
    let numbers = series.iter().flat_map(|series| &series.points);
    Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        y_scale: Scale::fitting(numbers.map(|(_, y)| *y)),
        series,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_of_equals_is_their_value_from_the_first_on() {
        let points: Points = (0..100).map(|k| (f64::from(k), 3.0)).collect();
        for (_, y) in smoothed(&points) {
            assert!((y - 3.0).abs() < 1e-12);
        }
        // By the definition.
        let points: Points = (0..250)
            .map(|k| (f64::from(k), f64::from(k * k % 37)))
            .collect();
        let smooth = smoothed(&points);
        for at in [0usize, 1, 100, 249] {
            let weights = (0..250).map(|k: usize| 0.5f64.powf(k.abs_diff(at) as f64 / 2.5));
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().zip(&points).map(|(w, p)| w * p.1).sum();
            assert!((smooth[at].1 - sum / weights.iter().sum::<f64>()).abs() < 1e-9);
        }
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn thinning_keeps_the_extremes_and_the_order() {
        let mut points: Points = (0..5000)
            .map(|k| (f64::from(k), f64::from(k % 7)))
            .collect();
        points[1234].1 = 99.0;
        points[4999].1 = -99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= 2 * PARTS, "{}", thin.len());
        assert!(thin.contains(&(1234.0, 99.0)) && thin.contains(&(4999.0, -99.0)));
        assert!(thin.windows(2).all(|w| w[0].0 <= w[1].0));
        assert_eq!(thinned(&points[..500]), points[..500]);
        let outline = outline(&points);
        assert!(outline.len() <= PARTS + 1);
        assert_eq!(
            (outline[0], *outline.last().unwrap()),
            (points[0], points[4999])
        );
    }
}
