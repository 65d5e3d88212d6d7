//! A picture per figure: one row a peer, a bar to the median, a dot for each sample.

use std::path::Path;

use anyhow::{Result, anyhow};
use e2e::Figures;
use plotters::prelude::*;

const WIDTH: u32 = 720;
const ROW: u32 = 60;
/// Title and axis.
const FRAME: u32 = 100;

/// Writes `series` of every peer that has it as SVG; nothing when none has.
pub(crate) fn draw(path: &Path, series: &str, unit: &str, peers: &[(&str, &Figures)]) -> Result<()> {
    let rows: Vec<_> = peers
        .iter()
        .filter_map(|(name, figures)| Some((*name, figures.median(series)?, figures.samples(series))))
        .collect();
    let Some(count) = u32::try_from(rows.len()).ok().filter(|count| *count > 0) else {
        return Ok(());
    };
    let longest = rows.iter().flat_map(|(_, _, samples)| *samples).copied();
    let end = longest.fold(0.0, f64::max) * 1.05;
    let area = SVGBackend::new(path, (WIDTH, FRAME + ROW * count)).into_drawing_area();
    chart(&area, &rows, end, &format!("{series}, {unit}"), count)
        .map_err(|error| anyhow!("draw {}: {error}", path.display()))?;
    Ok(())
}

type Row<'a> = (&'a str, f64, &'a [f64]);

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    rows: &[Row<'_>],
    end: f64,
    title: &str,
    count: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..end, (0..count).into_segmented())?;
    let name = |place: &SegmentValue<u32>| match place {
        SegmentValue::CenterOf(row) => rows
            .get(*row as usize)
            .map_or_else(String::new, |(name, median, _)| format!("{name}: {median:.1}")),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(rows.len() + 1)
        .y_label_formatter(&name)
        .draw()?;
    for (row, (_, median, samples)) in (0..count).zip(rows) {
        let mut bar = Rectangle::new(
            [
                (0.0, SegmentValue::Exact(row)),
                (*median, SegmentValue::Exact(row + 1)),
            ],
            BLUE.mix(0.4).filled(),
        );
        bar.set_margin(10, 10, 0, 0);
        chart.draw_series([bar])?;
        let dots = samples.iter().map(|sample| {
            let place = (*sample, SegmentValue::CenterOf(row));
            Circle::new(place, 3, BLACK.mix(0.5).filled())
        });
        chart.draw_series(dots)?;
    }
    area.present()?;
    Ok(())
}
