// Command etcd is upstream's server, unchanged: upstream keeps its main in the
// root module, which replaces its own parts by folders and so cannot be built
// as a dependency.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
