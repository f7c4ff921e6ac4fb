//! A plot as SVG, to stand inside a page: the colours of axes and words are the page's.

use std::fmt::Write;

use super::{Chart, DOT_RADIUS, FAINT, HUES, LEGEND, LETTERS, LINE, Layout, Look, Series};

impl Chart {
    /// The plot as an `<svg>` element without any script or reference; what is not data takes the page's `currentColor`.
    pub fn svg(&self, width: usize, height: usize) -> String {
        let layout = Layout::new(self, width as f64, height as f64);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" \
             font-family=\"system-ui,sans-serif\" font-size=\"13\" fill=\"currentColor\">",
            escaped(&self.title)
        );
        self.axes(&layout, height as f64, &mut svg);
        for series in &self.series {
            draw(&layout, series, &mut svg);
        }
        for (series, x) in layout.legend(self) {
            sample(series, x, &mut svg);
            text(
                &series.name,
                (x + 26.0, LEGEND + LETTERS.1 / 2.0),
                "start",
                &mut svg,
            );
        }
        svg.push_str("</svg>");
        svg
    }

    fn axes(&self, layout: &Layout, height: f64, svg: &mut String) {
        let (left, right, top, bottom) = layout.plot;
        for (y, label) in layout.y.marks() {
            rule((left, y), (right, y), 0.15, svg);
            text(&label, (left - 8.0, y + LETTERS.1 / 2.0), "end", svg);
        }
        for (x, label) in layout.x.marks() {
            rule((x, bottom), (x, bottom + 5.0), 0.6, svg);
            text(&label, (x, bottom + 10.0 + LETTERS.1), "middle", svg);
        }
        rule((left, bottom), (right, bottom), 0.6, svg);
        // Writing into a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{left:.1}\" y=\"24\" font-size=\"17\">{}</text>",
            escaped(&self.title)
        );
        let middle = (left + right) / 2.0;
        text(&self.x_label, (middle, height - 9.0), "middle", svg);
        let middle = (top + bottom) / 2.0;
        let _ = write!(
            svg,
            "<text transform=\"translate(18 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(&self.y_label)
        );
    }
}

fn draw(layout: &Layout, series: &Series, svg: &mut String) {
    let points = layout.points(series);
    match series.look {
        Look::Line => line(&points, series, LINE, svg),
        Look::Faint => line(&points, series, FAINT, svg),
        Look::Dots => points.iter().for_each(|point| dot(*point, series, svg)),
    }
}

fn sample(series: &Series, x: f64, svg: &mut String) {
    let ends = [(x, LEGEND), (x + 20.0, LEGEND)];
    match series.look {
        Look::Line => line(&ends, series, LINE, svg),
        Look::Faint => line(&ends, series, FAINT, svg),
        Look::Dots => dot((x + 10.0, LEGEND), series, svg),
    }
}

fn line(
    points: &[(f64, f64)],
    series: &Series,
    (thickness, opacity): (f64, f64),
    svg: &mut String,
) {
    let points: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = write!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{thickness}\" \
         stroke-opacity=\"{opacity}\" stroke-linejoin=\"round\"/>",
        points.join(" "),
        hue(series)
    );
}

fn dot((x, y): (f64, f64), series: &Series, svg: &mut String) {
    let hue = hue(series);
    let _ = write!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DOT_RADIUS}\" fill=\"{hue}\"/>"
    );
}

fn rule(from: (f64, f64), to: (f64, f64), opacity: f64, svg: &mut String) {
    let _ = write!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"currentColor\" stroke-opacity=\"{opacity}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(words: &str, (x, y): (f64, f64), anchor: &str, svg: &mut String) {
    let words = escaped(words);
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn hue(series: &Series) -> String {
    let [red, green, blue] = HUES[series.hue % HUES.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}
