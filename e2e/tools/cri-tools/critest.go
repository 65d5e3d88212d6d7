//go:build tools

// Package tools keeps in go.mod what critest is made of. sigs.k8s.io/cri-tools/cmd/critest has test files only, and a
// `tool` directive cannot name such a package; nothing here is ever compiled.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
