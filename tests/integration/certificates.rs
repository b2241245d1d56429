//! TLS: a certificate is accepted where it is right, or where any is to be accepted; otherwise it is
//! said that it is the certificate, why, and what can be done.
//!
//! The certificates in `support/certificates` were made with openssl for this test alone: an
//! authority, a server that it has signed, and one of version 1 that has signed itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crate::support::{Server, Tool, repository_file, untouched};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

const FLAG: &str = "--dangerously-accept-invalid-certificates";

fn file(name: &str) -> String {
    let path = repository_file("tests/support/certificates").join(name);
    path.to_str().unwrap().to_owned()
}

/// Shows one certificate, whatever is wrong with it.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// The address of a proxy that speaks TLS with this certificate, and HTTP to the server.
fn https(certificate: &str, key: &str) -> String {
    let provider = rustls::crypto::ring::default_provider();
    let certificate = CertificateDer::from_pem_file(file(certificate)).unwrap();
    let key = PrivateKeyDer::from_pem_file(file(key)).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let shown = OneCertificate(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let upstream = Server::shared().http_port();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(serve(listener, config, upstream))
    });
    address
}

async fn serve(listener: TcpListener, config: rustls::ServerConfig, upstream: u16) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((connection, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut client) = acceptor.accept(connection).await else {
                return;
            };
            let server = tokio::net::TcpStream::connect(("127.0.0.1", upstream)).await;
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server.unwrap()).await;
        });
    }
}

fn plan(address: &str) -> Tool {
    Tool::new(untouched())
        .args(["plan", "--partition", "202406"])
        .env("CLICKHOUSE_URL", address)
}

#[test]
fn a_certificate_that_a_known_authority_has_signed_is_accepted() {
    let address = https("server.pem", "server.key");
    plan(&address)
        .env("SSL_CERT_FILE", file("authority.pem"))
        .run()
        .assert_code(0);
    // It speaks for this address only.
    let other = address.replace("127.0.0.1", "localhost");
    plan(&other)
        .env("SSL_CERT_FILE", file("authority.pem"))
        .run()
        .assert_one_error(2, &["certificate", "localhost", "CLICKHOUSE_URL", FLAG]);
}

#[test]
fn a_certificate_that_is_not_accepted_is_named_with_both_ways_out() {
    for (certificate, key, trusted, why) in [
        (
            "server.pem",
            "server.key",
            None,
            "no authority that this machine trusts",
        ),
        (
            "authority.pem",
            "authority.key",
            Some("authority.pem"),
            "an authority's own",
        ),
        (
            "version-1.pem",
            "version-1.key",
            Some("version-1.pem"),
            "version 1",
        ),
    ] {
        let address = https(certificate, key);
        let tool = match trusted {
            Some(name) => plan(&address).env("SSL_CERT_FILE", file(name)),
            None => plan(&address),
        };
        let outcome = tool.run();
        outcome.assert_one_error(2, &["certificate", why, "SSL_CERT_FILE", FLAG]);
        assert!(!outcome.stderr.contains("trying again"), "{outcome:?}");
        plan(&address).arg(FLAG).run().assert_code(0);
    }
}

#[test]
fn a_file_of_authorities_that_is_not_there_or_holds_none_is_named() {
    let address = https("server.pem", "server.key");
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    fs::write(&empty, "no certificates\n").unwrap();
    for name in ["/nowhere/authorities.pem", empty.to_str().unwrap()] {
        plan(&address)
            .env("SSL_CERT_FILE", name)
            .run()
            .assert_one_error(2, &["SSL_CERT_FILE", name]);
    }
    // Whatever else there is.
    plan(&address)
        .env("SSL_CERT_FILE", &empty)
        .env("SSL_CERT_DIR", "/etc/ssl/certs")
        .run()
        .assert_one_error(2, &["SSL_CERT_FILE", empty.to_str().unwrap()]);
    plan(&address)
        .env("SSL_CERT_FILE", "")
        .run()
        .assert_one_error(2, &["no authority that this machine trusts"]);
}

#[test]
fn the_file_of_authorities_can_be_named_in_the_env_file() {
    let address = https("server.pem", "server.key");
    let tool = plan(&address);
    let line = format!("SSL_CERT_FILE={}\n", file("authority.pem"));
    fs::write(tool.directory().join(".env"), line).unwrap();
    tool.run().assert_code(0);
}

/// A proxy that asks the server for what its client has not asked for.
fn proxy_that_compresses() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let upstream = Server::shared().http_port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            thread::spawn(move || {
                let mut server = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    let length = client.read(&mut piece).unwrap_or(0);
                    if length == 0 {
                        return;
                    }
                    request.extend_from_slice(&piece[..length]);
                }
                let line = request.iter().position(|&byte| byte == b'\n').unwrap() + 1;
                request.splice(line..line, b"Accept-Encoding: gzip\r\n".iter().copied());
                server.write_all(&request).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                let _ = std::io::copy(&mut server, &mut client);
            });
        }
    });
    address
}

#[test]
fn a_proxy_that_compresses_answers_is_named() {
    let outcome = plan(&proxy_that_compresses()).run();
    outcome.assert_one_error(2, &["proxy", "gzip", "turn compression off"]);
    assert!(!outcome.stderr.contains("trying again"), "{outcome:?}");
}
