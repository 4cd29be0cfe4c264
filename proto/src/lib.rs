//! What Forebay's processes must agree on: gRPC services, stored messages, errors, data protocol.

pub mod data;
pub mod error;

/// Messages and services of `forebay.v1`, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::large_futures
)]
pub mod v1 {
    tonic::include_proto!("forebay.v1");

    /// The services' descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forebay.v1.bin"));

    /// Every method of the services, as `forebay.v1.Data/Produce`.
    #[must_use]
    pub fn methods() -> Vec<String> {
        use prost::Message as _;
        // They were made by this crate's build.
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
        let mut methods = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    methods.push(format!("{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        methods
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_are_those_of_the_services() {
        let methods = super::v1::methods();
        for method in ["forebay.v1.Data/ProduceStream", "forebay.v1.Admin/CreateTopic"] {
            assert!(
                methods.iter().any(|one| one == method),
                "no {method} in {methods:?}"
            );
        }
    }
}

/// What the metadata store keeps, as generated.
#[allow(missing_docs, clippy::all)]
pub mod stored {
    tonic::include_proto!("forebay.meta.v1");
}
