//! A real ZooKeeper, for tables that are replicated.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

use super::LOOK_AGAIN;
use super::server::{free_ports, text};

/// Where Debian's package `libzookeeper-java` puts it; the jars that it needs are named in it.
const DEBIAN: &str = "/usr/share/java/zookeeper.jar";
/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs what follows until its standard input is closed, which the end of this process does too.
const UNTIL_INPUT_ENDS: &str = "\"$@\" & read -r _; kill -9 $!";

/// A ZooKeeper of one node. It ends when it is dropped, and at the latest together with the test binary.
pub struct ZooKeeper {
    _directory: TempDir,
    child: Child,
    lifeline: Option<ChildStdin>,
    port: u16,
}

impl ZooKeeper {
    /// Starts one and waits until it answers. `ZOOKEEPER_CLASSPATH` names another one than Debian's.
    pub fn start() -> ZooKeeper {
        let jars = env::var("ZOOKEEPER_CLASSPATH").unwrap_or_else(|_| DEBIAN.to_owned());
        let directory = tempfile::Builder::new()
            .prefix("events-backfill-test-zookeeper.")
            .tempdir()
            .expect("a temporary directory can be made");
        let [port] = free_ports();
        let configuration = directory.path().join("zoo.cfg");
        let settings = format!(
            "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\n4lw.commands.whitelist=ruok\n",
            directory.path().join("data").display()
        );
        fs::write(&configuration, settings).expect("the configuration can be written");
        let log = directory.path().join("log");
        let output = File::create(&log).expect("the log can be written");
        let mut child = Command::new("sh")
            .args([
                "-c",
                UNTIL_INPUT_ENDS,
                "sh",
                "java",
                "-Xmx128m",
                "-cp",
                &jars,
            ])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&configuration)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a file handle can be copied"))
            .stderr(output)
            .spawn()
            .expect("there is a shell");
        let keeper = ZooKeeper {
            lifeline: child.stdin.take(),
            _directory: directory,
            child,
            port,
        };
        let started = Instant::now();
        while !is_well(port) {
            let log = || fs::read(&log).map(text).unwrap_or_default();
            assert!(
                started.elapsed() < PATIENCE,
                "ZooKeeper did not start: `make test` installs java and {jars}.\n{}",
                log()
            );
            thread::sleep(LOOK_AGAIN);
        }
        keeper
    }

    /// Elements for the configuration of a server that uses it.
    pub fn config(&self) -> String {
        keeper_at(self.port)
    }
}

impl Drop for ZooKeeper {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.child.wait();
    }
}

/// Elements for the configuration of a server, with a keeper at that port, whether there is one or not.
pub fn keeper_at(port: u16) -> String {
    format!(
        "<zookeeper><node><host>127.0.0.1</host><port>{port}</port></node></zookeeper>
        <macros><shard>1</shard><replica>one</replica></macros>"
    )
}

fn is_well(port: u16) -> bool {
    let answer = || {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        connection.write_all(b"ruok")?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    answer().is_ok_and(|answer| answer == b"imok")
}
