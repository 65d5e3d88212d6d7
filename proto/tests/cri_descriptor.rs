//! Is our CRI text what kubelet and crictl speak? Compares `cri/v1/api.proto` with the `k8s.io/cri-api` Go module.
//!
//! In two steps, so that most of it needs nothing: our text against `cri/v1/api.lock`, always; the lock against the
//! module that `e2e/tools/cri-descriptor/go.mod` names, where Go is. To follow a new cri-api: raise the version there,
//! run `CLEARPOD_BLESS=cri cargo test -p proto --test cri_descriptor`, then change api.proto until this passes.

#[path = "cri_descriptor/listing.rs"]
mod listing;

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FieldOptions, FileDescriptorProto, FileDescriptorSet,
    OneofDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

use listing::{Listing, differences, from_lock, of_file, to_lock};

#[test]
fn our_text_is_the_locked_api() {
    let lock = from_lock(&fs::read_to_string(lock_path()).expect("read api.lock"));

    assert_eq!(
        differences(&our_listing(), &lock),
        "",
        "cri/v1/api.proto is not what cri/v1/api.lock says"
    );
}

#[test]
fn the_locked_api_is_that_of_the_kubernetes_module() {
    let module = match kubernetes_descriptor() {
        Ok(descriptor) => of_file(&descriptor),
        Err(Unusable::Program(cause)) => panic!("{cause}"),
        Err(Unusable::Go(cause)) if is_required("go") => panic!("CLEARPOD_REQUIRE names go, but {cause}"),
        Err(Unusable::Go(cause)) => {
            // Not eprintln!, which the test harness keeps to itself when a test passes.
            writeln!(
                io::stderr(),
                "SKIPPED: api.lock was not compared with k8s.io/cri-api: {cause}"
            )
            .expect("write to stderr");
            return;
        }
    };
    if env::var("CLEARPOD_BLESS").is_ok_and(|what| what == "cri") {
        fs::write(lock_path(), to_lock(&module)).expect("write api.lock");
    }
    let lock = from_lock(&fs::read_to_string(lock_path()).expect("read api.lock"));

    let found = differences(&lock, &module);
    assert!(
        found.is_empty(),
        "cri/v1/api.lock is not what the k8s.io/cri-api module says:
{found}"
    );
}

#[test]
fn every_rpc_of_both_services_is_listed() {
    let ours = our_listing();
    let count = |service: &str| {
        ours.keys()
            .filter(|name| name.starts_with(&format!("rpc {service}/")))
            .count()
    };

    assert_eq!((count("RuntimeService"), count("ImageService")), (37, 6));
}

#[test]
fn a_lock_reads_back_as_it_was_written() {
    assert_eq!(from_lock(&to_lock(&our_listing())), our_listing());
}

#[test]
fn every_kind_of_difference_in_a_field_is_reported() {
    report_each(&[
        (
            |file| field(file, "Mount", "image").number = Some(12),
            "field Mount.image: 12 ImageSpec, expected 9 ImageSpec",
        ),
        (
            |file| field(file, "Mount", "readonly").name = Some("read_only".into()),
            "field Mount.read_only: 3 bool, expected nothing\nfield Mount.readonly: missing, expected 3 bool",
        ),
        (
            |file| field(file, "KeyValue", "value").set_type(Type::String),
            "field KeyValue.value: 2 string, expected 2 bytes",
        ),
        (
            |file| field(file, "CpuUsage", "psi").type_name = Some(".runtime.v1.PsiData".into()),
            "field CpuUsage.psi: 4 PsiData, expected 4 PsiStats",
        ),
        (
            |file| field(file, "DNSConfig", "servers").set_label(Label::Optional),
            "field DNSConfig.servers: 1 string, expected 1 repeated string",
        ),
        (
            |file| field(file, "PodIP", "ip").proto3_optional = Some(true),
            "field PodIP.ip: 1 optional string, expected 1 string",
        ),
        (
            |file| message(file, "LinuxPodSandboxConfig").nested_type[0].field[1].set_type(Type::Bytes),
            "field LinuxPodSandboxConfig.sysctls: 3 map<string, bytes>, expected 3 map<string, string>",
        ),
        (
            |file| {
                let source = OneofDescriptorProto {
                    name: Some("source".into()),
                    options: None,
                };
                message(file, "Device").oneof_decl.push(source);
                field(file, "Device", "host_path").oneof_index = Some(0);
            },
            "field Device.host_path: 2 string in oneof source, expected 2 string",
        ),
        (
            |file| {
                let unpacked = FieldOptions {
                    packed: Some(false),
                    ..FieldOptions::default()
                };
                field(file, "PortForwardRequest", "port").options = Some(unpacked);
            },
            "field PortForwardRequest.port: 2 repeated int32 unpacked, expected 2 repeated int32",
        ),
    ]);
}

#[test]
fn every_kind_of_difference_in_enums_messages_and_services_is_reported() {
    report_each(&[
        (
            |file| {
                let signal = file
                    .enum_type
                    .iter_mut()
                    .find(|item| item.name() == "Signal")
                    .expect("Signal");
                signal.value[23].number = Some(15);
            },
            "enum value Signal.SIGNAL_SIGTERM: 15, expected 23",
        ),
        (
            |file| message(file, "SecurityProfile").enum_type[0].value[2].name = Some("Path".into()),
            "enum value SecurityProfile.ProfileType.Localhost: missing, expected 2\n\
             enum value SecurityProfile.ProfileType.Path: 2, expected nothing",
        ),
        (
            |file| {
                let kept = |message: &DescriptorProto| message.name() != "StopContainerResponse";
                file.message_type.retain(kept);
            },
            "message StopContainerResponse: missing, expected proto3",
        ),
        (
            |file| file.service[0].method.retain(|method| method.name() != "Attach"),
            "rpc RuntimeService/Attach: missing, expected AttachRequest -> AttachResponse",
        ),
        (
            |file| {
                let mut methods = file.service[0].method.iter_mut();
                methods
                    .find(|method| method.name() == "GetContainerEvents")
                    .expect("it")
                    .server_streaming = None;
            },
            "rpc RuntimeService/GetContainerEvents: GetEventsRequest -> ContainerEventResponse, \
             expected GetEventsRequest -> stream ContainerEventResponse",
        ),
    ]);
}

/// One change to our descriptor, and the lines that must come of it.
type Change = (fn(&mut FileDescriptorProto), &'static str);

fn report_each(changes: &[Change]) {
    let genuine = our_listing();
    for (change, report) in changes {
        let mut file = our_descriptor();
        change(&mut file);

        assert_eq!(&differences(&of_file(&file), &genuine), report);
    }
}

fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut DescriptorProto {
    file.message_type
        .iter_mut()
        .find(|message| message.name() == name)
        .expect("a message of that name")
}

fn field<'a>(file: &'a mut FileDescriptorProto, of: &str, name: &str) -> &'a mut FieldDescriptorProto {
    message(file, of)
        .field
        .iter_mut()
        .find(|field| field.name() == name)
        .expect("a field of that name")
}

fn our_listing() -> Listing {
    of_file(&our_descriptor())
}

fn our_descriptor() -> FileDescriptorProto {
    let mut set = FileDescriptorSet::decode(proto::cri::FILE_DESCRIPTOR_SET).expect("our own descriptor set");
    assert_eq!(set.file.len(), 1, "api.proto imports nothing");
    set.file.remove(0)
}

fn lock_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cri/v1/api.lock")
}

fn is_required(what: &str) -> bool {
    env::var("CLEARPOD_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == what))
}

/// Why there is nothing to compare with.
enum Unusable {
    /// No Go here, one that is too old, or no way to the modules: not the fault of this repository.
    Go(String),
    /// The Go program has all that it needs, and fails.
    Program(String),
}

fn kubernetes_descriptor() -> Result<FileDescriptorProto, Unusable> {
    let go = |arguments: &[&str]| -> Result<Output, Unusable> {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/tools/cri-descriptor");
        let ran = Command::new("go").args(arguments).current_dir(module).output();
        ran.map_err(|error| Unusable::Go(format!("go cannot be run: {error}")))
    };
    let stderr = |output: &Output| String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");

    // Whatever must be fetched is fetched here. No stamps: git refuses to work in another user's checkout.
    let loaded = go(&["list", "-deps", "-buildvcs=false", "."])?;
    if !loaded.status.success() {
        return Err(Unusable::Go(format!(
            "go cannot load the module: {}",
            stderr(&loaded)
        )));
    }
    let printed = go(&["run", "-buildvcs=false", "."])?;
    if !printed.status.success() {
        return Err(Unusable::Program(format!(
            "cri-descriptor failed: {}",
            stderr(&printed)
        )));
    }
    FileDescriptorProto::decode(printed.stdout.as_slice())
        .map_err(|error| Unusable::Program(format!("cri-descriptor printed no descriptor: {error}")))
}
