//! The plot: throughput and processor time of each contender, as bars.

use std::fmt::Write as _;

use super::measure::Spread;
use super::report::Row;
use super::section::short;

/// Pixels: of the whole, of the names, of a column of bars with its figures,
/// of a contender's line, of a bar.
const WIDTH: f64 = 960.0;
const NAMES: f64 = 280.0;
const COLUMN: f64 = 340.0;
const LINE: f64 = 26.0;
const BAR: f64 = 14.0;
/// Room for the figure at the end of a bar.
const FIGURE: f64 = 52.0;
const TOP: f64 = 54.0;

/// Readable on light and dark: the page's scheme chooses.
const STYLE: &str = "<style>
text{font:13px system-ui,sans-serif;fill:#1f2328}.small{font-size:11px;fill:#59636e}
.ours{fill:#0a7d55}.other{fill:#8c959f}.spread{stroke:#1f2328;stroke-width:1}.ground{fill:#fff}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.ours{fill:#2fbf87}.other{fill:#6e7681}.spread{stroke:#e6edf3}.ground{fill:#0d1117}}
</style>";

/// What a column shows.
type Figure = fn(&Row) -> Spread;

/// An SVG of these rows.
pub fn svg(rows: &[&Row], what: &str) -> String {
    let height = TOP + rows.len() as f64 * LINE + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>Throughput and processor time: {}</title>\n{STYLE}\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        escape(what)
    );
    let columns: [(&str, Figure); 2] = [
        ("GiB/s: more is better", Row::rate),
        ("CPU-s/GiB: less is better", Row::cost),
    ];
    for (at, (title, pick)) in columns.into_iter().enumerate() {
        let left = NAMES + at as f64 * COLUMN;
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"36\">{title}</text>");
        let most = rows.iter().map(|row| pick(row).most).fold(0.0, f64::max);
        let scale = (COLUMN - FIGURE) / most;
        for (line, row) in rows.iter().enumerate() {
            let y = TOP + line as f64 * LINE;
            let spread = pick(row);
            let ours = row.contender.name().contains("strongroom");
            let (class, middle) = (if ours { "ours" } else { "other" }, y + BAR / 2.0);
            let (end, least, most) = (
                left + spread.median * scale,
                left + spread.least * scale,
                left + spread.most * scale,
            );
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\"/><path class=\"spread\" d=\"M{least:.1} {middle}H{most:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                (end - left).max(1.0),
                most.max(end) + 5.0,
                y + 11.5,
                short(spread.median)
            );
        }
    }
    for (line, row) in rows.iter().enumerate() {
        let y = TOP + line as f64 * LINE + 11.5;
        let name = escape(&row.contender.name());
        let x = NAMES - 10.0;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{name}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"small\" x=\"10\" y=\"{}\">Medians, with the least and the most as lines. {}</text>\n</svg>",
        height - 10.0,
        escape(what)
    );
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
