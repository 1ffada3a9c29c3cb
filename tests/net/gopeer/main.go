// A groupcache peer for tests: an HTTPPool that serves its ring on one address, and obeys on another.
//
// Values follow from group and key: "V:GROUP:KEY". A key that begins with "fail:" has a loader that fails with the rest
// of the key for its text; one that begins with "size:N:" gets a value of N bytes; "empty:" gets an empty value;
// "whole:N:" gets N bytes that are the key over and over, and their checksum.
//
// Keys are base64 of the URL alphabet in queries, and a line each in bodies. On the admin address:
//
//	GET  /get?group=G&key=K  a get through groupcache: 200 with the value, or 500 with the error's text
//	POST /owners             a line for each key of the body: the URL of the peer that owns it
//	GET  /loads?group=G      a line for each loaded key: how often, and the key
//	GET  /stats?group=G      JSON of the group's Stats
//	POST /peers              set the ring: a URL on each line
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/golang/groupcache"
)

type loadCounts struct {
	mu     sync.Mutex
	counts map[string]map[string]int
}

var loads = loadCounts{counts: map[string]map[string]int{}}

func (l *loadCounts) add(group, key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[group] == nil {
		l.counts[group] = map[string]int{}
	}
	l.counts[group][key]++
}

func load(group, key string) ([]byte, error) {
	switch {
	case strings.HasPrefix(key, "fail:"):
		return nil, errors.New(key[len("fail:"):])
	case strings.HasPrefix(key, "empty:"):
		return []byte{}, nil
	case strings.HasPrefix(key, "size:"):
		parts := strings.SplitN(key, ":", 3)
		size, err := strconv.Atoi(parts[1])
		if err != nil {
			return nil, err
		}
		return []byte(strings.Repeat("x", size)), nil
	case strings.HasPrefix(key, "whole:"):
		size, err := strconv.Atoi(strings.SplitN(key, ":", 3)[1])
		if err != nil {
			return nil, err
		}
		body := []byte(strings.Repeat(key, size/len(key)+1))[:size]
		return binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body)), nil
	}
	return []byte("V:" + group + ":" + key), nil
}

// owner is the URL behind the getter that PickPeer names, which groupcache does not export.
func owner(pool *groupcache.HTTPPool, self, basePath, key string) string {
	getter, remote := pool.PickPeer(key)
	if !remote {
		return self
	}
	return strings.TrimSuffix(reflect.ValueOf(getter).Elem().FieldByName("baseURL").String(), basePath)
}

func listen(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

func keyOf(r *http.Request) (string, error) {
	key, err := base64.URLEncoding.DecodeString(r.URL.Query().Get("key"))
	return string(key), err
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(c rune) bool { return c == ',' })
}

func main() {
	address := flag.String("listen", "127.0.0.1:0", "serve peers on this address")
	adminAddress := flag.String("admin", "127.0.0.1:0", "obey on this address")
	self := flag.String("self", "", "this peer's URL; by default that of the address")
	peers := flag.String("peers", "", "URLs of the ring, separated by commas")
	groups := flag.String("groups", "g", "names of groups, separated by commas")
	cacheBytes := flag.Int64("cache-bytes", 1<<20, "of each group")
	basePath := flag.String("base-path", "/_groupcache/", "")
	replicas := flag.Int("replicas", 50, "")
	mux := flag.Bool("mux", false, "serve through http.ServeMux, as groupcache.NewHTTPPool does")
	flag.Parse()

	listener, adminListener := listen(*address), listen(*adminAddress)
	if *self == "" {
		*self = "http://" + listener.Addr().String()
	}
	pool := groupcache.NewHTTPPoolOpts(*self, &groupcache.HTTPPoolOptions{BasePath: *basePath, Replicas: *replicas})
	pool.Set(split(*peers)...)
	for _, name := range split(*groups) {
		name := name
		groupcache.NewGroup(name, *cacheBytes, groupcache.GetterFunc(
			func(ctx context.Context, key string, dest groupcache.Sink) error {
				loads.add(name, key)
				value, err := load(name, key)
				if err != nil {
					return err
				}
				return dest.SetBytes(value)
			}))
	}

	var handler http.Handler = pool
	if *mux {
		serveMux := http.NewServeMux()
		serveMux.Handle(*basePath, pool)
		handler = serveMux
	}
	// The handler panics at paths outside the base path; that is not worth a stack trace on every test's log.
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { log.Fatal(server.Serve(listener)) }()

	admin := http.NewServeMux()
	admin.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		key, err := keyOf(r)
		group := groupcache.GetGroup(r.URL.Query().Get("group"))
		if err != nil || group == nil {
			http.Error(w, "which group and key?", http.StatusBadRequest)
			return
		}
		var value []byte
		if err := group.Get(r.Context(), key, groupcache.AllocatingByteSliceSink(&value)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(value)
	})
	admin.HandleFunc("/owners", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out := bufio.NewWriter(w)
		defer out.Flush()
		for _, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
			key, err := base64.URLEncoding.DecodeString(line)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Fprintln(out, owner(pool, *self, *basePath, string(key)))
		}
	})
	admin.HandleFunc("/loads", func(w http.ResponseWriter, r *http.Request) {
		loads.mu.Lock()
		defer loads.mu.Unlock()
		for key, count := range loads.counts[r.URL.Query().Get("group")] {
			fmt.Fprintln(w, count, base64.URLEncoding.EncodeToString([]byte(key)))
		}
	})
	admin.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
		stats := &groupcache.GetGroup(r.URL.Query().Get("group")).Stats
		json.NewEncoder(w).Encode(map[string]int64{
			"gets":            stats.Gets.Get(),
			"cache_hits":      stats.CacheHits.Get(),
			"peer_loads":      stats.PeerLoads.Get(),
			"peer_errors":     stats.PeerErrors.Get(),
			"loads":           stats.Loads.Get(),
			"loads_deduped":   stats.LoadsDeduped.Get(),
			"local_loads":     stats.LocalLoads.Get(),
			"local_load_errs": stats.LocalLoadErrs.Get(),
			"server_requests": stats.ServerRequests.Get(),
		})
	})
	admin.HandleFunc("/peers", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		pool.Set(strings.Fields(string(body))...)
	})
	go func() { log.Fatal(http.Serve(adminListener, admin)) }()

	// Both listen already, so whoever reads this may connect.
	fmt.Println(*self, "http://"+adminListener.Addr().String())
	io.Copy(io.Discard, os.Stdin) // the tests' end, however they end, is this process's
}
