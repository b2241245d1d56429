//! A real Chromium without a window, driven by chromedriver.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::LOOK_AGAIN;

/// How long a browser may take to start, and to start again: its driver gives up after a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the operating system prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

/// A browser, ended when it is dropped.
pub struct Browser {
    driver: Child,
    runtime: Runtime,
    client: Client,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // With the driver's session ends the browser.
        let _ = self.runtime.block_on(self.client.clone().close());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// A browser whose window is so many pixels wide.
    pub fn start(width: u32, scheme: Scheme) -> Browser {
        let port = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let driver = env::var("CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".to_owned());
        let driver = Command::new(&driver)
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{driver} cannot be started ({error}): scripts/install-prerequisites.sh --tests installs it")
            });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(connect(port, capabilities(width, scheme)));
        Browser {
            driver,
            runtime,
            client,
        }
    }

    /// Opens a file.
    pub fn open(&self, file: &Path) {
        let address = format!("file://{}", file.display());
        self.runtime.block_on(self.client.goto(&address)).unwrap();
    }

    /// Runs a script in the page, and gives what it returns.
    pub fn ask(&self, script: &str) -> Value {
        let asked = self.client.execute(script, Vec::new());
        self.runtime.block_on(asked).unwrap()
    }

    /// The text of all elements that a selector finds.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let script = format!(
            "return [...document.querySelectorAll({})].map(e => e.textContent.trim())",
            json!(selector)
        );
        serde_json::from_value(self.ask(&script)).unwrap()
    }

    /// A picture of the window, as PNG.
    pub fn picture(&self) -> Vec<u8> {
        self.runtime.block_on(self.client.screenshot()).unwrap()
    }
}

async fn connect(port: u16, capabilities: serde_json::Map<String, Value>) -> Client {
    let started = Instant::now();
    loop {
        let connected =
            ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&format!("http://127.0.0.1:{port}"))
                .await;
        match connected {
            Ok(client) => return client,
            Err(error) if started.elapsed() > PATIENCE => panic!("no browser: {error}"),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn capabilities(width: u32, scheme: Scheme) -> serde_json::Map<String, Value> {
    // 0 is dark: `PreferredColorScheme` in the browser's own settings.
    let preferred = match scheme {
        Scheme::Dark => 0,
        Scheme::Light => 1,
    };
    let mut options = json!({
        "args": [
            "--headless=new",
            // Tests may run as root, and in a container with little shared memory.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            format!("--window-size={width},1000"),
            format!("--blink-settings=preferredColorScheme={preferred}"),
        ],
        // Narrower than any window of a desktop may be.
        "mobileEmulation": {
            "deviceMetrics": {"width": width, "height": 1000, "pixelRatio": 1.0, "mobile": false},
        },
    });
    if let Ok(binary) = env::var("CHROMIUM") {
        options["binary"] = binary.into();
    }
    let capabilities = json!({"goog:chromeOptions": options});
    capabilities.as_object().unwrap().clone()
}
