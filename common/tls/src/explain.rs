//! Why a handshake failed, in words that say what to do.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};

/// What went wrong, told of the other side ("its certificate ..."). `None` if it
/// has nothing to do with TLS.
pub fn explain(error: &io::Error) -> Option<String> {
    let tls = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match tls {
        Error::InvalidCertificate(bad) => certificate(bad),
        Error::AlertReceived(alert) => alert_received(*alert),
        Error::NoCertificatesPresented => "it shows no certificate, and one is required".to_owned(),
        Error::InvalidMessage(_) => format!("it does not speak TLS ({tls})"),
        other => other.to_string(),
    })
}

fn certificate(bad: &Bad) -> String {
    match bad {
        Bad::Expired | Bad::ExpiredContext { .. } => format!("its certificate has expired ({bad}); renew it"),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            format!("its certificate is not valid yet ({bad}); compare the clocks")
        }
        Bad::UnknownIssuer | Bad::BadSignature => {
            "its certificate was issued by an authority that is not trusted here".to_owned()
        }
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
            format!("its certificate is for another name ({bad})")
        }
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            format!("its certificate is for another purpose ({bad})")
        }
        other => format!("its certificate cannot be accepted ({other})"),
    }
}

fn alert_received(alert: Alert) -> String {
    match alert {
        Alert::CertificateExpired => "it says that our certificate has expired; renew it".to_owned(),
        Alert::UnknownCA => "it does not trust the authority that issued our certificate".to_owned(),
        Alert::CertificateRequired => "it requires a client certificate".to_owned(),
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            format!("it does not accept our certificate ({alert:?})")
        }
        other => format!("it ended the handshake ({other:?})"),
    }
}
