//! Compiles the `.proto` files without `protoc` and keeps their descriptors for reflection.

use std::path::PathBuf;

use prost::Message as _;

const PUBLIC: [&str; 3] = [
    "forebay/v1/common.proto",
    "forebay/v1/data.proto",
    "forebay/v1/admin.proto",
];
const STORED: &str = "forebay/v1/record.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=forebay");
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let public = protox::compile(PUBLIC, [&root])?;
    std::fs::write(out.join("forebay.v1.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .compile_fds(public)?;
    let stored = protox::compile([STORED], [&root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .build_server(false)
        .build_client(false)
        .compile_fds(stored)?;
    Ok(())
}
