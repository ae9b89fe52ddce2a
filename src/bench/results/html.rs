//! `report.html`: one file that needs nothing else, neither a network nor scripts.

mod pictures;

use std::fmt::Write;

use super::super::over_time::Panel;
use super::document::Document;
use super::goals::State;
use super::verdict::{Outcome, Verdict};
use super::{Series, catalog, text};

/// Colours follow the reader's choice of dark or light.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1c1c; --ground: #ffffff; --line: #c8c8c8;
  --won: #d8f0e0; --tied: #ececec; --lost: #f8dcd6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --ground: #16181a; --line: #44484c;
  --won: #1d4030; --tied: #303336; --lost: #5a2a22; } }
body { color: var(--ink); background: var(--ground); font: 15px/1.45 sans-serif;
  max-width: 82em; margin: 2em auto; padding: 0 1em; }
p { max-width: 56em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { border: 1px solid var(--line); padding: 0.15em 0.5em; text-align: left; vertical-align: top;
  white-space: nowrap; }
td:first-child { white-space: normal; min-width: 16em; }
.notes td { white-space: normal; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.won td.verdict { background: var(--won); } tr.lost td.verdict { background: var(--lost); }
tr.tied td.verdict, tr.control td.verdict { background: var(--tied); }
td.reached { background: var(--won); } td.not { background: var(--lost); }
.wide { overflow-x: auto; }
.sweep { display: flex; flex-wrap: wrap; gap: 0.5em; }
svg { max-width: 100%; height: auto; color: var(--ink); }
summary { cursor: pointer; }
pre { overflow: auto; max-height: 40em; border: 1px solid var(--line); padding: 0.6em; }
";

/// Text as text, wherever it stands in a page.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The page of `document`, which as JSON is `json`, with the memory of guests over time if it was measured.
///
/// # Errors
/// What was said when a picture could not be drawn.
pub(super) fn page(
    document: &Document,
    json: &str,
    over_time: Option<&[Panel]>,
) -> Result<String, String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>alacrity: benchmarks</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>alacrity beside its peers</h1>\n<p>Report made {}. {}</p>\n",
        escape(&document.made),
        score(document),
    );
    page.push_str(
        "<p>The ratio is the peer's cost by ours, or our rate by the peer's: <b>above 1 ours is better</b>. \
         It is the median of the rounds with its quartiles, which of up to four rounds are the least and \
         the greatest. A tie has 1 between the quartiles, or is within the noise: that of a subject \
         beside itself (control) in that case if it was measured, else half of the spread of either side's \
         values, together. A goal is reached if the median reaches it; it changes no verdict. Ratios of \
         one run compare, values of two runs do not.</p>\n",
    );
    pictures::headline(&mut page, document)?;
    goals(&mut page, document);
    ratios(&mut page, document);
    pictures::ratios(&mut page, document)?;
    pictures::sweeps(&mut page, document)?;
    pictures::parts(&mut page, document)?;
    pictures::over_time(&mut page, over_time)?;
    changes(&mut page, document);
    alone(&mut page, document);
    facts(&mut page, document);
    let _ = write!(
        page,
        "<h2>Raw values</h2>\n<p>All of it for programs: <a href=\"results.json\" download>results.json</a>, \
         beside this page, and here.</p>\n<details><summary>results.json</summary><pre>{}</pre></details>\n\
         </body>\n</html>\n",
        escape(json)
    );
    Ok(page)
}

fn score(document: &Document) -> String {
    let count = |verdict, is_sweep| {
        let outcomes = document.outcomes.iter();
        let of_verdict = outcomes.filter(|outcome| {
            !outcome.is_control && outcome.verdict == verdict && outcome.x.is_some() == is_sweep
        });
        of_verdict.count()
    };
    let score = |is_sweep| {
        format!(
            "won {}, tied {} and lost {}",
            count(Verdict::Won, is_sweep),
            count(Verdict::Tied, is_sweep),
            count(Verdict::Lost, is_sweep)
        )
    };
    let mut text = format!("Ours {}", score(false));
    if document.outcomes.iter().any(|outcome| outcome.x.is_some()) {
        let _ = write!(text, ", and of the points of sweeps {}", score(true));
    }
    format!("{text}. {}", text::score_of_goals(&document.goals))
}

/// A table; cells are HTML already.
fn table(page: &mut String, head: &[&str], rows: impl IntoIterator<Item = String>) {
    page.push_str("<div class=\"wide\"><table>\n<tr>");
    for cell in head {
        let _ = write!(page, "<th>{}</th>", escape(cell));
    }
    page.push_str("</tr>\n");
    for row in rows {
        page.push_str(&row);
        page.push('\n');
    }
    page.push_str("</table></div>\n");
}

/// The cells of a row, which are text.
fn cells<const N: usize>(texts: [&str; N]) -> String {
    let cell = |text: &str| format!("<td>{}</td>", escape(text));
    texts.map(cell).concat()
}

/// The class of a cell that tells what became of a goal.
fn class(state: State) -> &'static str {
    match state {
        State::StretchReached | State::Reached => "reached",
        State::NotReached => "not",
        State::NotMeasured => "",
    }
}

fn goals(page: &mut String, document: &Document) {
    page.push_str("<h2>Goals</h2>\n");
    let rows = document.goals.iter().map(|goal| {
        let case = catalog::point(&goal.case, goal.x);
        let wanted = text::wanted(goal);
        format!(
            "<tr>{}<td class=\"number\">{}</td><td class=\"{}\">{}</td></tr>",
            cells([goal.what, &case, &goal.metric, &goal.peer, &wanted]),
            escape(&text::found(goal)),
            class(goal.state),
            goal.state.words(),
        )
    });
    let head = [
        "what",
        "case",
        "metric",
        "peer, or whose",
        "goal",
        "found",
        "",
    ];
    table(page, &head, rows);
}

fn ratios(page: &mut String, document: &Document) {
    page.push_str("<h2>Ratios</h2>\n");
    let (points, cases): (Vec<&Outcome>, Vec<&Outcome>) = document
        .outcomes
        .iter()
        .partition(|outcome| outcome.x.is_some());
    table_of_ratios(page, &cases);
    if !points.is_empty() {
        let num = points.len();
        let _ = writeln!(
            page,
            "<details><summary>Points of sweeps: {num} ratios</summary>"
        );
        table_of_ratios(page, &points);
        page.push_str("</details>\n");
    }
}

fn table_of_ratios(page: &mut String, outcomes: &[&Outcome]) {
    let rows = outcomes.iter().map(|outcome| {
        let class_of_row = match outcome.is_control {
            true => "control",
            false => outcome.verdict.word(),
        };
        let noise = outcome.noise.map_or("-".to_owned(), |noise| {
            format!("{:.1} %", noise * 100.0)
        });
        format!(
            "<tr class=\"{class_of_row}\">{}<td class=\"number\">{}</td><td class=\"verdict\">{}</td>\
             <td class=\"{}\">{}</td>{}</tr>",
            cells([
                &outcome.point(),
                &format!("{}, {}", outcome.metric, outcome.unit),
                &format!("{}, {}", outcome.ours, outcome.peer),
            ]),
            escape(&text::ratio(outcome.ratio)),
            escape(&text::verdict(outcome)),
            outcome.goal.map_or("", |goal| class(goal.state)),
            escape(&text::goal(outcome.goal)),
            cells([
                &text::spread(outcome.our_values),
                &text::spread(outcome.peer_values),
                &noise,
                &outcome.num_rounds.to_string(),
            ]),
        )
    });
    let head = [
        "case",
        "metric",
        "ours, peer",
        "ratio",
        "verdict",
        "goal",
        "ours",
        "peer's",
        "noise",
        "rounds",
    ];
    table(page, &head, rows);
}

fn changes(page: &mut String, document: &Document) {
    if let Some(changes) = &document.changes {
        let text = escape(text::changes(changes).trim());
        let _ = write!(page, "<h2>Beside the earlier run</h2>\n<pre>{text}</pre>\n");
    }
}

fn alone(page: &mut String, document: &Document) {
    let alone = text::alone(document);
    if !alone.is_empty() {
        let num = alone.len();
        let _ = write!(
            page,
            "<h2>Without a ratio</h2>\n<details><summary>{num} series of values</summary>\n"
        );
        let rows = alone.iter().map(|series| {
            let num_values = series.values().len().to_string();
            let spread = text::spread(series.summary());
            let Series {
                metric, unit, peer, ..
            } = series;
            let case = series.point();
            let cells = cells([&case, metric, unit, peer, &spread, &num_values]);
            format!("<tr>{cells}</tr>")
        });
        let head = [
            "case",
            "metric",
            "unit",
            "peer",
            "median (quartiles)",
            "values",
        ];
        table(page, &head, rows);
        page.push_str("</details>\n");
    }
    if !document.results.unknown.is_empty() {
        page.push_str("<p>What this program does not know:</p>\n<ul>\n");
        for (what, num) in &document.results.unknown {
            let _ = writeln!(page, "<li>{} ({num} times)</li>", escape(what));
        }
        page.push_str("</ul>\n");
    }
}

fn facts(page: &mut String, document: &Document) {
    page.push_str("<h2>Machine and versions</h2>\n<p>Where this report was made:</p>\n");
    let pair = |name: &str, text: &str| format!("<tr>{}</tr>", cells([name, text]));
    let machine = document.machine.iter();
    table(
        page,
        &["what", "value"],
        machine.map(|(name, text)| pair(name, text)),
    );
    if !document.results.notes.is_empty() {
        page.push_str(
            "<p>Noted by the scripts when they measured, peers' command lines among it:</p>\n",
        );
        let notes = document.results.notes.iter();
        page.push_str("<div class=\"notes\">\n");
        table(
            page,
            &["what", "value"],
            notes.map(|(name, text)| pair(name, text)),
        );
        page.push_str("</div>\n");
    }
    page.push_str("<p>Files with raw values:</p>\n");
    let rows = document.results.sources.iter().map(|source| {
        let num_values = source.num_values.to_string();
        format!(
            "<tr>{}</tr>",
            cells([&source.file, &source.written, &num_values])
        )
    });
    table(page, &["file", "last written", "values"], rows);
    page.push_str(
        "<h2>How to do it again</h2>\n<pre>scripts/bench            # boot, memory, network, verbs, and this report\n\
         scripts/bench-reclaim    # reclaim.json, guests.tsv\n\
         alacrity bench ring --json target/bench/ring.json    # also: call, frames\n\
         alacrity bench report --from target/bench --out target/bench</pre>\n\
         <p><code>docs/benchmarks.md</code> of the sources says what each case is.</p>\n",
    );
}

#[cfg(test)]
mod tests {
    use super::super::Results;
    use super::super::compare::compare;
    use super::super::samples::results;
    use super::*;

    fn page_of(results: Results) -> String {
        let changes = compare(&Results::default(), &results);
        let document = Document::new(results, Some(changes));
        let json = serde_json::to_string_pretty(&document).unwrap();
        page(&document, &json, None).unwrap()
    }

    #[test]
    fn page_refers_to_nothing_outside_and_has_no_scripts() {
        let page = page_of(results(&[10.0, 10.0], &[20.0, 21.0]));

        for outside in [
            "http:", "https:", "//", "<script", "<link", "@import", "url(", "src=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        // The one reference is to the file beside it.
        assert_eq!(page.matches("href=").count(), 1);
        assert!(page.contains("href=\"results.json\""));
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn page_has_ratio_verdict_picture_and_values() {
        let page = page_of(results(&[10.0, 10.0], &[20.0, 21.0]));

        assert!(page.contains("Ours won 1, tied 0 and lost 0. Goals: 0 reached"));
        assert!(page.contains("<td class=\"verdict\">won</td>"));
        assert!(page.contains("2.05 (2.00 to 2.10)"));
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(page.contains("&quot;rounds&quot;"));
        assert!(page.contains("2 new") || page.contains("1 new"));
    }

    #[test]
    fn text_of_files_stays_text() {
        let mut results = results(&[10.0, 10.0], &[20.0, 21.0]);
        results.series[1].peer = "<b>".into();
        for series in &mut results.series {
            series.case = "\"><script>'&".into();
            series.metric = "<i>".into();
            series.unit = "<u>".into();
        }
        results.notes.insert("<s>".into(), "</td>x".into());
        results.note_unknown("<em>".into());

        let page = page_of(results);

        // One is ours, in the paragraph about ratios.
        assert_eq!(page.matches("<b>").count(), 1);
        for tag in ["<i>", "<u>", "<s>", "</td>x", "<em>", "<script"] {
            assert!(!page.contains(tag), "{tag}");
        }
        assert!(page.contains("&lt;b&gt;"));
    }
}
