//! The page about runs, opened in a real browser.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::browser::{Browser, Scheme};
use crate::support::{Outcome, SAMPLE_PARTITION, Server, Tool, small_month};

/// Wider than any screen of a phone, and as wide as one of a desktop.
const WIDTHS: [u32; 2] = [360, 1_400];
/// Text on its background, at least, where it is as small as here (WCAG 2.1, 1.4.3).
const LEAST_CONTRAST: f64 = 4.5;

/// `report` about a state directory.
fn report(state_dir: &Path, html: &Path) -> Outcome {
    Tool::unconfigured()
        .env("REPORT", "none")
        .args(["report", "--state-dir"])
        .arg(state_dir)
        .arg("--html")
        .arg(html)
        .run()
}

/// A number as the page writes it.
fn number(value: &Value) -> String {
    let digits = value.as_u64().unwrap().to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap())
        .collect();
    groups.join(",")
}

/// Computes the least contrast of visible text to the background behind it.
const CONTRAST: &str = r"
    const luminance = colour => {
        const parts = colour.match(/[\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (!/, 0\)$|transparent/.test(colour)) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    let least = 99;
    for (const e of document.querySelectorAll('body *')) {
        const says = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!says || e.closest('svg') || !e.offsetParent) continue;
        const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
        least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
    }
    return least;
";

#[test]
fn a_browser_shows_the_numbers_of_the_report_and_asks_nothing_of_a_network() {
    // A name as long as a table's may be, which a narrow window has to break.
    let database = Server::shared().sample_month(&"page".repeat(12), 10_000);
    let run = Tool::new(&database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION, "--html", "page.html"])
        // Less than a machine does that is busy with other tests: there is something to see.
        .args(["--max-rows-per-second", "2000"]);
    run.run().assert_code(0);
    let page = run.directory().join("page.html");
    let report = run.report();
    for width in WIDTHS {
        for scheme in [Scheme::Light, Scheme::Dark] {
            let browser = Browser::start(width, scheme);
            browser.open(&page);
            if let Ok(directory) = std::env::var("PICTURES") {
                let name = format!("{directory}/{width}-{scheme:?}.png");
                fs::write(name, browser.picture()).unwrap();
            }
            let events = report["events_inserted"].as_u64().unwrap()
                + report["root_spans_inserted"].as_u64().unwrap();
            let cells = browser.texts("#months tbody td");
            assert_eq!(
                cells[..6],
                [
                    SAMPLE_PARTITION.to_owned(),
                    "finished".to_owned(),
                    number(&report["traces_loaded"]),
                    number(&report["observations_processed"]),
                    number(&events.into()),
                    number(&report["observations_without_trace"]),
                ]
            );
            charts_are_drawn(&browser, &report);
            assert_eq!(browser.ask("return innerWidth"), width);
            // Nothing sticks out: what is wide scrolls in itself.
            let sizes = "return [document.documentElement.scrollWidth, innerWidth]";
            let sizes: [u64; 2] = serde_json::from_value(browser.ask(sizes)).unwrap();
            assert!(sizes[0] <= sizes[1], "{sizes:?}");
            let contrast = browser.ask(CONTRAST).as_f64().unwrap();
            assert!(contrast >= LEAST_CONTRAST, "{scheme:?}: {contrast}");
            let background = browser.ask("return getComputedStyle(document.body).backgroundColor");
            let is_dark = background != "rgb(246, 247, 249)";
            assert_eq!(is_dark, scheme == Scheme::Dark, "{background}");
        }
    }
    let html = fs::read_to_string(&page).unwrap();
    asks_nothing(&html, run.directory());
    for word in ["<script", "http://", "https://", "url(", "@import"] {
        assert!(!html.contains(word), "{word}");
    }
}

/// Without the policy by which the browser would ask nothing whatever the page says.
fn asks_nothing(html: &str, directory: &Path) {
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    assert!(html.contains(policy));
    let html = html.replace(policy, "");
    let somewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = somewhere.local_addr().unwrap();
    let image = format!("<main><img src=\"http://{address}/\">");
    let browser = Browser::start(WIDTHS[1], Scheme::Light);
    let asked = |html: &str| {
        let copy = directory.join("copy.html");
        fs::write(&copy, html).unwrap();
        browser.open(&copy);
        let asked = browser.ask("return performance.getEntriesByType('resource').length");
        asked.as_u64().unwrap()
    };
    // An image that is asked for and that nobody gives.
    drop(somewhere);
    assert_eq!(asked(&html.replace("<main>", &image)), 1);
    assert_eq!(asked(&html), 0);
}

/// Four charts with lines that one can see, whose figures come to the report's numbers.
fn charts_are_drawn(browser: &Browser, report: &Value) {
    let titles = browser.texts("figure h3");
    assert_eq!(titles, ["Throughput", "Inserts", "Throttling", "Memory"]);
    let sizes = "return [...document.querySelectorAll('figure svg')].map(svg => {
        const box = svg.getBoundingClientRect();
        const lines = [...svg.querySelectorAll('.line')].map(l => l.getBoundingClientRect().width);
        return [box.width, box.height, Math.max(...lines)];
    })";
    let sizes: Vec<[f64; 3]> = serde_json::from_value(browser.ask(sizes)).unwrap();
    for [width, height, line] in sizes {
        assert!(width > 200.0 && height > 100.0, "{width} x {height}");
        assert!(line > width / 2.0, "{line} of {width}");
    }
    let throttled = browser.texts("figure:nth-of-type(3) .said");
    assert!(throttled[0].contains("rows per second"), "{throttled:?}");
    let sum = |column: u32| {
        let cells = browser.texts(&format!(".figures tbody td:nth-child({column})"));
        let numbers = cells.iter().map(|cell| cell.replace(',', ""));
        numbers
            .map(|cell| cell.parse::<u64>().unwrap())
            .sum::<u64>()
    };
    let events = report["events_inserted"].as_u64().unwrap();
    let root_spans = report["root_spans_inserted"].as_u64().unwrap();
    assert_eq!(sum(3), events + root_spans);
    assert!(sum(2) >= report["traces_loaded"].as_u64().unwrap());
    let stores = browser.texts(".figures tbody td:last-child");
    assert_ne!(stores.last().unwrap(), "0 B");
}

#[test]
fn the_page_of_a_state_directory_says_how_to_go_on_and_what_verify_said() {
    let database = Server::shared().sample_month("page_state", 30_000);
    let run = Tool::new(&database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION, "--segment-rows", "5000"])
        .args(["--max-rows-per-second", "6000"]);
    let mut running = run.spawn();
    let checkpoint = run.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let started = Instant::now();
    while !checkpoint.exists() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(1_500));
    running.terminate();
    running.wait().assert_code(143);
    let (page, state_dir) = (run.directory().join("page.html"), run.state_dir());
    let html = || {
        report(&state_dir, &page).assert_code(0);
        fs::read_to_string(&page).unwrap()
    };
    let interrupted = html();
    assert!(interrupted.contains(">interrupted<"), "{interrupted}");
    assert!(interrupted.contains("with the same command line and --resume"));
    let run = run.arg("--resume");
    run.run().assert_code(0);
    let finished = html();
    assert!(finished.contains(">finished<"), "{finished}");
    assert!(finished.contains("<title>resumed 20"), "{finished}");
    assert!(finished.contains("events-backfill verify --partition"));
    let verify = Tool::new(&database)
        .with_defaults()
        .args(["verify", "--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", state_dir.as_os_str());
    verify.run().assert_code(0);
    let verified = html();
    assert!(verified.contains("<td>equal</td>"), "{verified}");
    assert!(
        verified.contains("<p class=\"good\">Nothing.</p>"),
        "{verified}"
    );
    let mode = fs::metadata(&page).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it may quote rows");
    // A verify that is ended early says nothing, and what was said before stays.
    let mut pauses = (1..=30).map(|step| Duration::from_millis(20 * step));
    let is_ended_early = pauses.any(|pause| {
        let mut verifying = verify.spawn();
        thread::sleep(pause);
        verifying.terminate();
        verifying.wait().code == Some(143)
    });
    assert!(is_ended_early);
    assert!(html().contains("<td>equal</td>"));
    // What is damaged then is said, and what it says is text.
    database
        .query(
            "INSERT INTO events_full SELECT * REPLACE ('<img src=x onerror=1>' AS span_id, \
             event_ts + INTERVAL 1 SECOND AS event_ts) FROM events_full FINAL LIMIT 1",
        )
        .unwrap();
    let outcome = verify.run();
    outcome.assert_code(1);
    let differs = html();
    assert!(differs.contains("<td>not equal</td>"), "{differs}");
    assert!(differs.contains("delete rows by hand"));
    assert!(differs.contains("&#60;img src=x"), "{differs}");
    assert!(!differs.contains("<img"));
}

#[test]
fn a_repair_that_has_not_ended_is_left_to_do_and_what_else_was_compared_says_nothing() {
    let database = Server::shared().sample_month("page_repair", 20_000);
    let run = Tool::new(&database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION]);
    run.run().assert_code(0);
    let (page, state_dir) = (run.directory().join("page.html"), run.state_dir());
    let html = || {
        report(&state_dir, &page).assert_code(0);
        fs::read_to_string(&page).unwrap()
    };
    let tool = |command: &str| {
        Tool::new(&database)
            .with_defaults()
            .args([command, "--partition", SAMPLE_PARTITION])
            .env("STATE_DIR", state_dir.as_os_str())
    };
    tool("verify").run().assert_code(0);
    assert!(html().contains("<td>equal</td>"));
    // Neither another table nor other events are what this run has written.
    database
        .query("CREATE TABLE another AS events_full")
        .unwrap();
    for arguments in [&["--target-table", "another"][..], &["--no-trace-metadata"]] {
        let outcome = tool("verify").args(arguments.iter().copied()).run();
        outcome
            .assert_code(1)
            .assert_stderr_contains("the result of this verify is not kept for `report`");
        assert!(html().contains("<td>equal</td>"));
    }
    for table in ["events_full", "events_core"] {
        database.query(&format!("TRUNCATE TABLE {table}")).unwrap();
    }
    let slow = tool("repair").args(["--max-rows-per-second", "1000", "--concurrency", "1"]);
    let wait_until_it_writes = || {
        let started = Instant::now();
        while database
            .query("SELECT count() > 0 FROM events_full")
            .unwrap()
            .trim()
            == "0"
        {
            assert!(started.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(20));
        }
    };
    let mut repairing = slow.spawn();
    wait_until_it_writes();
    repairing.kill();
    repairing.wait();
    let killed = html();
    assert!(!killed.contains("<td>equal</td>"), "{killed}");
    assert!(killed.contains("repair: started at 20"), "{killed}");
    assert!(killed.contains(&format!(
        "<code>events-backfill repair --partition {SAMPLE_PARTITION} --resume</code>"
    )));
    let slow = slow.arg("--resume");
    let mut repairing = slow.spawn();
    thread::sleep(Duration::from_secs(4));
    repairing.terminate();
    repairing.wait().assert_code(143);
    let interrupted = html();
    assert!(
        interrupted.contains("</b>: repair: interrupted"),
        "{interrupted}"
    );
    tool("repair").arg("--resume").run().assert_code(0);
    let repaired = html();
    assert!(!repaired.contains("repair: "), "{repaired}");
    assert!(repaired.contains("<code>events-backfill verify --partition"));
    tool("verify").run().assert_code(0);
    assert!(html().contains("<p class=\"good\">Nothing.</p>"));
    // What was kept and cannot be read any more is said in its month.
    let verified = state_dir.join(SAMPLE_PARTITION).join("verify.json");
    fs::write(&verified, "{").unwrap();
    let damaged = html();
    assert!(damaged.contains("verify.json cannot be used"), "{damaged}");
    assert!(damaged.contains("writes a new one"));
    assert!(damaged.contains("<td>unknown</td>"));
    let again = run.args(["--html", "again.html"]);
    again.run().assert_code(0);
    assert!(again.directory().join("again.html").exists());
}

#[test]
fn a_dry_run_that_ends_early_has_all_its_months_on_its_page_and_none_is_done() {
    let database = Server::shared().database("page_early");
    database.load_schema();
    for first_day in ["2024-04-01", "2024-05-01", "2024-06-01"] {
        database.load_month(first_day, 5_000);
    }
    let run = Tool::new(&database)
        .args(["--partition", "202404..202406", "--dry-run"])
        .args(["--max-rows-per-second", "1000", "--html", "page.html"]);
    let mut running = run.spawn();
    // The first month is under way.
    thread::sleep(Duration::from_secs(3));
    running.terminate();
    running.wait().assert_code(143);
    let html = fs::read_to_string(run.directory().join("page.html")).unwrap();
    assert_eq!(html.matches("<section").count(), 3, "{html}");
    assert_eq!(html.matches("dry run, interrupted</td>").count(), 1);
    assert_eq!(html.matches("dry run, not started</td>").count(), 2);
    assert!(html.contains("0 of 3 months done"));
}

#[test]
fn a_dry_run_has_a_page_too_and_of_several_months_each_has_its_part() {
    let database = small_month("page_months");
    let run = Tool::new(&database).args(["--all-partitions", "--dry-run", "--html", "page.html"]);
    run.run().assert_code(0);
    let months = run.report()["partitions"].as_array().unwrap().len();
    let html = fs::read_to_string(run.directory().join("page.html")).unwrap();
    assert_eq!(html.matches("<section").count(), months);
    assert_eq!(
        html.matches("dry run: nothing was written</td>").count(),
        months
    );
    assert!(html.contains(&format!("0 of {months} months done")));
}

#[test]
fn where_there_is_nothing_to_show_or_no_place_for_it_one_sentence_says_so() {
    let run = Tool::unconfigured();
    let page = run.directory().join("page.html");
    let missing = run.directory().join("missing");
    report(&missing, &page).assert_one_error(2, &["there is no state directory"]);
    fs::create_dir(run.state_dir()).unwrap();
    report(&run.state_dir(), &page).assert_one_error(2, &["there are no runs in"]);
    let month = run.state_dir().join("202406");
    fs::create_dir(&month).unwrap();
    report(&run.state_dir(), &run.directory().join("not/there.html"))
        .assert_one_error(2, &["--html", "there is no directory"]);
    report(&run.state_dir(), &month.join("checkpoint"))
        .assert_one_error(2, &["--html", "which holds the state of a run"]);
    assert!(!page.exists());
}
