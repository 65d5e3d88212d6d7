//! A descriptor as names and what each stands for, so that two of them can be compared and kept in a text file.
//!
//! Listed is what can be seen on the wire or by name: packages, messages, fields (number, type, repeated, optional,
//! map, oneof, packing), enum values, RPCs with their streams. Not listed: order, comments, other options.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions,
    ServiceDescriptorProto, field_descriptor_proto::Label,
};

/// Name to meaning, e.g. `field Mount.image` to `9 ImageSpec`.
pub(crate) type Listing = BTreeMap<String, String>;

const LOCK_HEADER: &str =
    "# What k8s.io/cri-api declares, one line per name. Made by proto/tests/cri_descriptor.rs.\n";

pub(crate) fn of_file(file: &FileDescriptorProto) -> Listing {
    let mut lister = Lister {
        package: format!(".{}.", file.package()),
        syntax: file.syntax(),
        found: Listing::from([("package".to_owned(), file.package().to_owned())]),
    };
    for message in &file.message_type {
        lister.add_message(message, "");
    }
    for item in &file.enum_type {
        lister.add_enum(item, "");
    }
    for service in &file.service {
        lister.add_service(service);
    }
    lister.found
}

/// One line per name on which the two do not agree; empty when they say the same.
pub(crate) fn differences(actual: &Listing, expected: &Listing) -> String {
    let names: BTreeSet<_> = actual.keys().chain(expected.keys()).collect();
    let lines = names
        .into_iter()
        .filter_map(|name| match (actual.get(name), expected.get(name)) {
            (Some(actual), Some(expected)) if actual == expected => None,
            (Some(actual), Some(expected)) => Some(format!("{name}: {actual}, expected {expected}")),
            (Some(actual), None) => Some(format!("{name}: {actual}, expected nothing")),
            (None, expected) => Some(format!("{name}: missing, expected {}", expected?)),
        });
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn to_lock(listing: &Listing) -> String {
    let lines = listing
        .iter()
        .map(|(name, meaning)| format!("{name} = {meaning}\n"));
    LOCK_HEADER.to_owned() + &lines.collect::<String>()
}

pub(crate) fn from_lock(text: &str) -> Listing {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, text)| (name.into(), text.into()))
        .collect()
}

struct Lister<'a> {
    /// `.runtime.v1.`: the prefix of the file's own types, which are spelt without it.
    package: String,
    syntax: &'a str,
    found: Listing,
}

impl Lister<'_> {
    fn add_message(&mut self, message: &DescriptorProto, scope: &str) {
        let name = format!("{scope}{}", message.name());
        self.found
            .insert(format!("message {name}"), self.syntax.to_owned());
        for field in &message.field {
            let meaning = format!("{} {}", field.number(), self.type_of(field, message, &name));
            self.found
                .insert(format!("field {name}.{}", field.name()), meaning);
        }
        for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
            self.add_message(nested, &format!("{name}."));
        }
        for nested in &message.enum_type {
            self.add_enum(nested, &format!("{name}."));
        }
    }

    fn add_enum(&mut self, item: &EnumDescriptorProto, scope: &str) {
        let name = format!("{scope}{}", item.name());
        for value in &item.value {
            self.found.insert(
                format!("enum value {name}.{}", value.name()),
                value.number().to_string(),
            );
        }
        self.found.insert(format!("enum {name}"), self.syntax.to_owned());
    }

    fn add_service(&mut self, service: &ServiceDescriptorProto) {
        let stream = |streaming| if streaming { "stream " } else { "" };
        for method in &service.method {
            let meaning = format!(
                "{}{} -> {}{}",
                stream(method.client_streaming()),
                self.relative(method.input_type()),
                stream(method.server_streaming()),
                self.relative(method.output_type()),
            );
            self.found
                .insert(format!("rpc {}/{}", service.name(), method.name()), meaning);
        }
        self.found
            .insert(format!("service {}", service.name()), self.syntax.to_owned());
    }

    fn type_of(&self, field: &FieldDescriptorProto, message: &DescriptorProto, name: &str) -> String {
        let of_field = |nested: &&DescriptorProto| {
            self.relative(field.type_name()) == format!("{name}.{}", nested.name()) && is_map_entry(nested)
        };
        if let Some(entry) = message.nested_type.iter().find(of_field) {
            let types: Vec<_> = entry
                .field
                .iter()
                .map(|of_entry| self.plain_type(of_entry))
                .collect();
            return format!("map<{}>", types.join(", "));
        }
        let label = match field.label() {
            Label::Repeated => "repeated ",
            Label::Required => "required ",
            Label::Optional if field.proto3_optional() => "optional ",
            Label::Optional => "",
        };
        let index = field.oneof_index.and_then(|index| usize::try_from(index).ok());
        let oneof = index.and_then(|index| message.oneof_decl.get(index));
        let oneof = oneof
            .map(|oneof| format!(" in oneof {}", oneof.name()))
            .unwrap_or_default();
        let unpacked = field
            .options
            .as_ref()
            .is_some_and(|options| options.packed == Some(false));
        format!(
            "{label}{}{oneof}{}",
            self.plain_type(field),
            if unpacked { " unpacked" } else { "" }
        )
    }

    fn plain_type(&self, field: &FieldDescriptorProto) -> String {
        match field.type_name() {
            "" => field
                .r#type()
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
            named => self.relative(named).to_owned(),
        }
    }

    fn relative<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.package).unwrap_or(name)
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(MessageOptions::map_entry)
}
