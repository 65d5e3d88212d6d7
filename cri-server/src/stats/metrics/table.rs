//! How a series of metrics is written down: its descriptor and how it is read, in one place, so that neither can be
//! without the other.

use proto::cri::v1 as cri;

/// What every series is told apart by, in this order. As in cAdvisor, a pod's own series have no container, name or image.
pub(super) const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// One series, read of `S`.
#[derive(Debug)]
pub(super) struct Series<S> {
    name: &'static str,
    help: &'static str,
    /// Labels beside [`LABELS`].
    keys: &'static [&'static str],
    kind: cri::MetricType,
    read: fn(&S) -> Vec<Reading>,
}

/// A value, with a label for each of its series' keys.
#[derive(Debug)]
pub(super) struct Reading {
    labels: Vec<String>,
    value: u64,
}

/// Of a series without further labels.
pub(super) fn one(value: u64) -> Vec<Reading> {
    vec![of(&[], value)]
}

/// One that is not always there.
pub(super) fn some(value: Option<u64>) -> Vec<Reading> {
    value.map(one).unwrap_or_default()
}

pub(super) fn of(labels: &[&str], value: u64) -> Reading {
    Reading {
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        value,
    }
}

impl<S> Series<S> {
    /// What only grows.
    pub(super) const fn counter(
        name: &'static str,
        help: &'static str,
        keys: &'static [&'static str],
        read: fn(&S) -> Vec<Reading>,
    ) -> Self {
        let mut series = Self::gauge(name, help, keys, read);
        series.kind = cri::MetricType::Counter;
        series
    }

    /// What goes up and down.
    pub(super) const fn gauge(
        name: &'static str,
        help: &'static str,
        keys: &'static [&'static str],
        read: fn(&S) -> Vec<Reading>,
    ) -> Self {
        Self {
            name,
            help,
            keys,
            kind: cri::MetricType::Gauge,
            read,
        }
    }

    pub(super) fn descriptor(&self) -> cri::MetricDescriptor {
        cri::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: LABELS
                .iter()
                .chain(self.keys)
                .map(|&key| key.to_owned())
                .collect(),
        }
    }

    /// The metrics of `subject`, whose [`LABELS`] are `labels`.
    pub(super) fn metrics(
        &self,
        subject: &S,
        labels: &[String; LABELS.len()],
        at_ns: i64,
    ) -> Vec<cri::Metric> {
        let readings = (self.read)(subject).into_iter();
        readings
            .map(|reading| cri::Metric {
                name: self.name.to_owned(),
                timestamp: at_ns,
                metric_type: self.kind.into(),
                label_values: labels.iter().cloned().chain(reading.labels).collect(),
                value: Some(cri::UInt64Value { value: reading.value }),
            })
            .collect()
    }
}
