//! TLS: verified against the machine's certificate authorities, unless the user
//! said in so many words that any certificate will do.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// A client configuration. Certificate authorities are only read when they are
/// `needed`, so that a plain HTTP address works on a machine without any.
pub(super) fn client_config(needed: bool, accept_invalid: bool) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    if accept_invalid {
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    if needed {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
        let mut named = named.into_iter().filter_map(|name| {
            let value = std::env::var(name).ok()?;
            let is_wrong = roots.is_empty() || (name == "SSL_CERT_FILE" && !is_readable(&value));
            is_wrong.then_some((name, value))
        });
        if let Some((name, value)) = named.next() {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(format!(
                "{name} names {value}, and no certificates of authorities can be read there{}",
                errors
                    .first()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default()
            ));
        }
        if roots.is_empty() {
            return Err(
                "no certificate authorities were found on this machine to verify the \
                        server with: install the ca-certificates package, or name a file of \
                        them in SSL_CERT_FILE"
                    .to_owned(),
            );
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn is_readable(path: &str) -> bool {
    std::fs::File::open(path).is_ok_and(|mut file| std::io::Read::read(&mut file, &mut [0]).is_ok())
}

/// Accepts every certificate, also one that is not understood (of version 1, say), with which the
/// signatures of the handshake cannot be checked. That they are right would say no more than that who
/// answers has the key of the certificate that he has shown.
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
