//! Plots of numbers: one description, drawn as a picture or written as SVG.

mod axis;
mod svg;

use crate::canvas::{Anchor, Canvas, Colour};
use crate::lettering::text_width;
use crate::{Picture, Result};
use axis::Axis;

pub use axis::Scale;

/// Lines and dots over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What goes to the right.
    pub x_label: String,
    /// What goes up.
    pub y_label: String,
    /// How y is laid out; x is always linear.
    pub y_scale: Scale,
    /// What is drawn, the first at the bottom.
    pub series: Vec<Series>,
}

/// Numbers that belong together.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend; without one it is not in the legend.
    pub name: String,
    /// (x, y) in order of x. What is not finite, or not above 0 on a logarithmic axis, is left out, and interrupts no line.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub look: Look,
    /// Which of the six colours, counted round.
    pub hue: usize,
}

/// How numbers are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A line.
    Line,
    /// A thin, pale line: what is measured, beneath what is made of it.
    Faint,
    /// A dot each.
    Dots,
}

/// Colours that can be told apart on white and on black, also by most of those who see fewer of them.
const HUES: [Colour; 6] = [
    [47, 125, 209],
    [224, 112, 32],
    [36, 153, 104],
    [170, 90, 190],
    [200, 60, 80],
    [130, 130, 130],
];

/// How a [`Look`] is drawn: thickness and opacity of its line.
const LINE: (f64, f64) = (2.0, 1.0);
const FAINT: (f64, f64) = (1.0, 0.35);
const DOT_RADIUS: f64 = 3.5;

const TEXT: Colour = [60, 60, 60];
const RULE: Colour = [226, 226, 226];
const EDGE: Colour = [150, 150, 150];

/// Space around the plot, in pixels: left, right, top, bottom.
const MARGINS: (f64, f64, f64, f64) = (66.0, 18.0, 58.0, 46.0);
/// Height of capitals: of the title, of all else.
const LETTERS: (f64, f64) = (12.0, 9.0);

impl Chart {
    /// Draws it, dark on white, RGB.
    ///
    /// # Errors
    /// [`Error::Size`](crate::Error::Size) when a side is 0.
    pub fn picture(&self, width: usize, height: usize) -> Result<Picture> {
        let mut canvas = Canvas::new(width, height, [255; 3]);
        let layout = Layout::new(self, width as f64, height as f64);
        let (left, right, top, bottom) = layout.plot;
        let letters = LETTERS.1;
        for (y, label) in layout.y.marks() {
            canvas.line(&[(left, y), (right, y)], 1.0, RULE, 1.0);
            let base = (left - 8.0, y + letters / 2.0);
            canvas.text(&label, base, letters, Anchor::End, TEXT);
        }
        for (x, label) in layout.x.marks() {
            canvas.line(&[(x, bottom), (x, bottom + 5.0)], 1.0, EDGE, 1.0);
            let base = (x, bottom + 10.0 + letters);
            canvas.text(&label, base, letters, Anchor::Middle, TEXT);
        }
        canvas.line(&[(left, bottom), (right, bottom)], 1.0, EDGE, 1.0);
        canvas.text(&self.title, (left, 24.0), LETTERS.0, Anchor::Start, TEXT);
        let below = ((left + right) / 2.0, height as f64 - 9.0);
        canvas.text(&self.x_label, below, letters, Anchor::Middle, TEXT);
        let beside = (18.0, (top + bottom) / 2.0);
        canvas.upright_text(&self.y_label, beside, letters, TEXT);
        for series in &self.series {
            draw(&mut canvas, &layout, series);
        }
        for (series, x) in layout.legend(self) {
            sample(&mut canvas, series, x);
            let base = (x + 26.0, LEGEND + letters / 2.0);
            canvas.text(&series.name, base, letters, Anchor::Start, TEXT);
        }
        canvas.into_picture()
    }
}

/// The line on which the legend stands.
const LEGEND: f64 = 42.0;

fn draw(canvas: &mut Canvas, layout: &Layout, series: &Series) {
    let points = layout.points(series);
    let hue = HUES[series.hue % HUES.len()];
    match series.look {
        Look::Line => canvas.line(&points, LINE.0, hue, LINE.1),
        Look::Faint => canvas.line(&points, FAINT.0, hue, FAINT.1),
        Look::Dots => points
            .iter()
            .for_each(|point| canvas.dot(*point, DOT_RADIUS, hue)),
    }
}

/// What a series looks like, in the legend.
fn sample(canvas: &mut Canvas, series: &Series, x: f64) {
    let hue = HUES[series.hue % HUES.len()];
    let ends = [(x, LEGEND), (x + 20.0, LEGEND)];
    match series.look {
        Look::Line => canvas.line(&ends, LINE.0, hue, LINE.1),
        Look::Faint => canvas.line(&ends, FAINT.0, hue, FAINT.1),
        Look::Dots => canvas.dot((x + 10.0, LEGEND), DOT_RADIUS, hue),
    }
}

/// Where everything is.
struct Layout {
    /// Left, right, top, bottom.
    plot: (f64, f64, f64, f64),
    x: Axis,
    y: Axis,
}

impl Layout {
    fn new(chart: &Chart, width: f64, height: f64) -> Self {
        let (left, right) = (MARGINS.0, (width - MARGINS.1).max(MARGINS.0 + 1.0));
        let (top, bottom) = (MARGINS.2, (height - MARGINS.3).max(MARGINS.2 + 1.0));
        let all = || chart.series.iter().flat_map(|series| &series.points);
        let finite = |point: &&(f64, f64)| point.0.is_finite() && chart.y_scale.has(point.1);
        let xs = all().filter(finite).map(|point| point.0);
        let ys = all().filter(finite).map(|point| point.1);
        Self {
            plot: (left, right, top, bottom),
            x: Axis::over(xs, Scale::Linear, 0.0, (left, right), 90.0),
            y: Axis::over(ys, chart.y_scale, 0.05, (bottom, top), 45.0),
        }
    }

    /// Where the points of a series are, those that are anywhere.
    fn points(&self, series: &Series) -> Vec<(f64, f64)> {
        let there = series
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && self.y.scale().has(*y));
        there
            .map(|(x, y)| (self.x.place(*x), self.y.place(*y)))
            .collect()
    }

    /// The series with names, and where each begins in the legend.
    fn legend<'a>(&self, chart: &'a Chart) -> Vec<(&'a Series, f64)> {
        let mut x = self.plot.0;
        let named = chart.series.iter().filter(|series| !series.name.is_empty());
        named
            .map(|series| {
                let here = x;
                x += 26.0 + text_width(&series.name, LETTERS.1) + 24.0;
                (series, here)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> Chart {
        Chart {
            title: "loss & <others>".into(),
            x_label: "step".into(),
            y_label: "loss".into(),
            y_scale: Scale::Linear,
            series,
        }
    }

    fn series(look: Look, points: &[(f64, f64)]) -> Series {
        Series {
            name: "a series".into(),
            points: points.to_vec(),
            look,
            hue: 0,
        }
    }

    fn pixel(picture: &Picture, (x, y): (f64, f64)) -> &[u8] {
        &picture.pixels()[3 * (y as usize * picture.width() + x as usize)..][..3]
    }

    #[test]
    fn a_line_goes_through_its_points_and_nowhere_else() {
        let points = [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)];
        let plot = chart(vec![series(Look::Line, &points)]);
        let picture = plot.picture(400, 300).unwrap();
        let layout = Layout::new(&plot, 400.0, 300.0);
        for (x, y) in layout.points(&plot.series[0]) {
            let around = [(x - 1.0, y - 1.0), (x - 1.0, y), (x, y - 1.0), (x, y)];
            // At a peak no pixel is covered whole.
            let inked = around.iter().any(|point| pixel(&picture, *point)[0] < 140);
            assert!(inked, "no ink at {x}, {y}");
        }
        let inked: Vec<usize> = picture
            .pixels()
            .chunks(3)
            .enumerate()
            .filter(|(place, p)| *p == HUES[0] && place / 400 > 50)
            .map(|(place, _)| place)
            .collect();
        let (left, right, top, bottom) = layout.plot;
        for place in inked {
            let (x, y) = ((place % 400) as f64, (place / 400) as f64);
            assert!((left - 2.0..=right + 2.0).contains(&x) && (top..=bottom).contains(&y));
        }
        // The highest number is the highest point.
        let heights: Vec<f64> = layout.points(&plot.series[0]).iter().map(|p| p.1).collect();
        assert!(heights[1] < heights[2] && heights[2] < heights[0]);
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let points = [
            (0.0, f64::NAN),
            (1.0, 2.0),
            (2.0, f64::INFINITY),
            (3.0, -1.0),
        ];
        let mut plot = chart(vec![series(Look::Dots, &points)]);
        let count = |plot: &Chart| {
            Layout::new(plot, 400.0, 300.0)
                .points(&plot.series[0])
                .len()
        };
        assert_eq!(count(&plot), 2);
        plot.y_scale = Scale::Logarithmic;
        assert_eq!(count(&plot), 1);
        plot.picture(400, 300).unwrap();
        assert!(!plot.svg(400, 300).contains("NaN"));
        let empty = chart(vec![series(Look::Line, &[])]);
        empty.picture(400, 300).unwrap();
        assert!(!empty.svg(400, 300).contains("NaN"));
        empty.picture(10, 10).unwrap();
        assert!(empty.picture(0, 10).is_err());
    }

    #[test]
    fn svg_and_picture_are_the_same_plot() {
        let points = [(0.0, 1.0), (5.0, 3.0)];
        let plot = chart(vec![
            series(Look::Line, &points),
            series(Look::Dots, &points[1..]),
        ]);
        let svg = plot.svg(400, 300);
        let layout = Layout::new(&plot, 400.0, 300.0);
        let places = layout.points(&plot.series[0]);
        let expected = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
        let expected = expected.collect::<Vec<_>>().join(" ");
        assert!(svg.contains(&format!("points=\"{expected}\"")), "{svg}");
        let (x, y) = places[1];
        assert!(svg.contains(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\"")));
        assert!(svg.contains("loss &amp; &lt;others&gt;"));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"));
        for (_, label) in layout.y.marks() {
            assert!(svg.contains(&format!(">{label}</text>")), "{label}");
        }
    }
}
