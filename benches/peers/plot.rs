//! Plots, as SVG: the time of every rival for every work, and the time as more is held.

use std::fmt::Write as _;
use std::path::Path;

use crate::table::{Row, number};
use crate::works::{FLOOR, LIBVIRT, Large, OURS};

pub(crate) fn write(directory: &Path, rows: &[Row]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut places: Vec<_> = rows.iter().map(|row| row.file_system.as_str()).collect();
    places.dedup();
    for place in places {
        let rows: Vec<_> = rows.iter().filter(|row| row.file_system == place).collect();
        std::fs::write(directory.join(format!("times-{place}.svg")), times(place, &rows))?;
        std::fs::write(directory.join(format!("growth-{place}.svg")), growth(place, &rows))?;
    }
    Ok(())
}

fn colour(name: &str) -> &'static str {
    match name {
        OURS => "#1b6ca8",
        LIBVIRT => "#c8553d",
        FLOOR => "#7a7a7a",
        _ => "#c9c2b2",
    }
}

fn begin(width: usize, height: usize, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\">{title}</text>\n"
    )
}

/// A group of bars for each work, each bar as long as its time is of libvirt's.
fn times(place: &str, rows: &[&Row]) -> String {
    const LEFT: f64 = 170.0;
    const UNIT: f64 = 260.0;
    const MOST: f64 = 2.0;
    let rows = rows.iter().filter(|row| {
        // Of the sizes, the plot of growth tells.
        row.unit == "ns"
            && row.of(LIBVIRT).is_some()
            && !row.work.starts_with(Large::Acquire.title())
    });
    let rows: Vec<_> = rows.collect();
    let bars: usize = rows.iter().map(|row| row.results.len()).sum();
    let height = 70 + 18 * bars + 40 * rows.len();
    let title = format!("Time for each, of libvirt's ({place}); shorter is better");
    let mut svg = begin(840, height, &title);
    let mut y = 60.0;
    for row in rows {
        let libvirt = row.of(LIBVIRT).expect("it was asked");
        let _ = writeln!(svg, "<text x=\"16\" y=\"{y}\" font-weight=\"bold\">{}</text>", row.work);
        for (name, value) in &row.results {
            y += 18.0;
            let length = UNIT * (value / libvirt).min(MOST);
            let cut = if value / libvirt > MOST { " …" } else { "" };
            let (text, right) = (number(row.unit, *value), LEFT + length + 6.0);
            let (end, top, colour) = (LEFT - 8.0, y - 11.0, colour(name));
            let _ = writeln!(
                svg,
                "<text x=\"{end}\" y=\"{y}\" text-anchor=\"end\">{name}</text>\
                 <rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"14\" \
                 fill=\"{colour}\"/><text x=\"{right:.1}\" y=\"{y}\">{text}{cut}</text>"
            );
        }
        y += 40.0;
    }
    svg + "</svg>\n"
}

/// Time by number held, both by powers of ten.
fn growth(place: &str, rows: &[&Row]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 50.0;
    const WIDTH: f64 = 520.0;
    const HEIGHT: f64 = 320.0;
    // From 10 to 100,000 held, and from a microsecond to ten milliseconds.
    let x = |held: f64| LEFT + WIDTH * (held.log10() - 1.0) / 4.0;
    let y = |time: f64| TOP + HEIGHT * (1.0 - (time.log10() - 3.0) / 4.0);
    let title = format!("Time by number held ({place})");
    let mut svg = begin(840, 430, &title);
    for (time, text) in
        [(1e3, "1 us"), (1e4, "10 us"), (1e5, "100 us"), (1e6, "1 ms"), (1e7, "10 ms")]
    {
        let (at, end, right) = (y(time), LEFT - 8.0, LEFT + WIDTH);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{end}\" y=\"{at:.1}\" text-anchor=\"end\">{text}</text>"
        );
    }
    for held in [10.0, 100.0, 1e3, 1e4, 1e5] {
        let (at, bottom) = (x(held), TOP + HEIGHT + 18.0);
        let text =
            format!("<text x=\"{at:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{held}</text>");
        let _ = writeln!(svg, "{text}");
    }
    let works = [
        (Large::ReleaseOwner.title(), "release all", ""),
        (Large::Acquire.title(), "acquire and release", "6 4"),
    ];
    let mut legend = TOP + 10.0;
    for (work, text, dashes) in works {
        for who in [OURS, LIBVIRT, FLOOR] {
            let points = rows.iter().filter_map(|row| {
                let rest = row.work.strip_prefix(work)?.strip_prefix(", ")?;
                let held = rest.strip_suffix(" held")?.parse::<f64>().ok()?;
                Some(format!("{:.1},{:.1}", x(held), y(row.of(who)?)))
            });
            let points: Vec<_> = points.collect();
            if points.is_empty() {
                continue;
            }
            let (points, colour) = (points.join(" "), colour(who));
            let (from, to, label, base) =
                (LEFT + WIDTH + 12.0, LEFT + WIDTH + 40.0, LEFT + WIDTH + 46.0, legend + 4.0);
            let style =
                format!("stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"");
            let _ = writeln!(
                svg,
                "<polyline points=\"{points}\" fill=\"none\" {style}/>\
                 <line x1=\"{from}\" x2=\"{to}\" y1=\"{legend}\" y2=\"{legend}\" {style}/>\
                 <text x=\"{label}\" y=\"{base}\">{who}: {text}</text>"
            );
            legend += 20.0;
        }
    }
    let (middle, bottom) = (LEFT + WIDTH / 2.0, TOP + HEIGHT + 40.0);
    let label = format!("<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">held</text>");
    svg + &label + "\n</svg>\n"
}
