//! TLS: certificates are verified against certificate authorities, unless the user explicitly accepts any.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};

/// Names a directory of authorities' certificates; rustls-native-certs reads it too.
const DIRECTORY: &str = "SSL_CERT_DIR";

/// Which authorities may have signed the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those that the machine trusts.
    Machine,
    /// Those whose certificates are in this file, and in the directory of `SSL_CERT_DIR`.
    File(PathBuf),
    /// Any: the certificate is not verified.
    Anybody,
}

/// A client configuration. Reads certificate authorities only if `needed`, so that plain HTTP works on
/// a machine without any.
pub(super) fn client_config(needed: bool, trust: &Trust) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let roots = match (trust, needed) {
        (Trust::Anybody, _) => {
            return Ok(builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
                .with_no_client_auth());
        }
        (_, false) => RootCertStore::empty(),
        (Trust::Machine, true) => authorities_of_machine()?,
        (Trust::File(file), true) => authorities_in(file)?,
    };
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn authorities_of_machine() -> Result<RootCertStore, String> {
    // An empty variable means not set, but not to the library.
    let found = match env::var_os("SSL_CERT_FILE").is_some_and(|file| file.is_empty()) {
        true => {
            let of_machine = openssl_probe::probe();
            load_certs_from_paths(of_machine.cert_file.as_deref(), None)
        }
        false => load_native_certs(),
    };
    let (roots, error) = parsed(found);
    match (roots.is_empty(), env::var(DIRECTORY)) {
        (false, _) => Ok(roots),
        (true, Ok(directory)) => Err(unreadable(DIRECTORY, Path::new(&directory), &error)),
        (true, Err(_)) => Err(
            "this machine has no certificate authorities to verify the server with: install the \
             ca-certificates package, or name a file with their certificates in SSL_CERT_FILE"
                .to_owned(),
        ),
    }
}

fn authorities_in(file: &Path) -> Result<RootCertStore, String> {
    let (mut roots, error) = parsed(load_certs_from_paths(Some(file), None));
    if roots.is_empty() {
        return Err(unreadable("SSL_CERT_FILE", file, &error));
    }
    if let Some(directory) = env::var_os(DIRECTORY) {
        let found = load_certs_from_paths(None, Some(Path::new(&directory)));
        roots.add_parsable_certificates(found.certs);
    }
    Ok(roots)
}

/// The usable certificates, and the first error in parentheses, for a sentence.
fn parsed(found: CertificateResult) -> (RootCertStore, String) {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let error = found.errors.first();
    let error = error.map_or_else(String::new, |error| format!(" ({error})"));
    (roots, error)
}

fn unreadable(name: &str, path: &Path, error: &str) -> String {
    format!(
        "{name} names {}, but no authority's certificate can be read there{error}: choose another file or \
         directory",
        path.display()
    )
}

/// Accepts every certificate, even one that cannot be parsed (of version 1, say), whose handshake
/// signatures cannot be checked. Checking them would prove nothing anyway: only that the other side has
/// the key to the certificate that it presented.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
