// A Go groupcache client to measure: for each number on standard input it gets that many keys from the owner, and prints
// the nanoseconds that they took. Nothing is cached here, so each get is a fetch.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/golang/groupcache"
)

func main() {
	owner := flag.String("owner", "", "URL of the peer that owns all keys")
	name := flag.String("group", "g", "the group's name")
	prefix := flag.String("prefix", "size:100:", "of keys; a number follows")
	keys := flag.Int("keys", 1000, "how many there are")
	flag.Parse()

	pool := groupcache.NewHTTPPoolOpts("http://nowhere.invalid", nil)
	pool.Set(*owner)
	group := groupcache.NewGroup(*name, 0, groupcache.GetterFunc(
		func(ctx context.Context, key string, dest groupcache.Sink) error {
			return fmt.Errorf("%q was not fetched", key)
		}))
	next := 0
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		count, err := strconv.Atoi(lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		began := time.Now()
		for i := 0; i < count; i++ {
			var value []byte
			if err := group.Get(context.Background(), *prefix+strconv.Itoa(next%*keys), groupcache.AllocatingByteSliceSink(&value)); err != nil {
				log.Fatal(err)
			}
			next++
		}
		fmt.Println(time.Since(began).Nanoseconds())
	}
}
