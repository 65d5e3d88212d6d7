// Prints the descriptor of CRI v1 as k8s.io/cri-api has it: an encoded google.protobuf.FileDescriptorProto on stdout.
//
// proto/tests/cri_descriptor.rs runs this to compare proto/cri/v1/api.proto with the Kubernetes module that go.mod names.
package main

import (
	"fmt"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "cri-descriptor:", err)
		os.Exit(1)
	}
}

func run() error {
	// The file is reached through a message in it: its own path is not part of the contract.
	file := (&runtime.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
	encoded, err := proto.Marshal(protodesc.ToFileDescriptorProto(file))
	if err != nil {
		return fmt.Errorf("encode the descriptor of %s: %w", file.Path(), err)
	}
	_, err = os.Stdout.Write(encoded)
	return err
}
