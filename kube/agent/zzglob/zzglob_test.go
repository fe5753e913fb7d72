package zzglob

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMatch(t *testing.T) {
	cases := []struct {
		pattern, name string
		want          bool
	}{
		{"*.go", "a.go", true},
		{"*.go", "x/a.go", false},
		{"**/*.go", "a.go", true},
		{"**/*.go", "x/y/a.go", true},
		{"x/**", "x/y/z", true},
		{"x/**", "y/x/z", false},
		{"{a,b}/?.txt", "b/1.txt", true},
		{"{a,b}/?.txt", "c/1.txt", false},
		{"[ab]c", "bc", true},
		{"[^ab]c", "bc", false},
		{`\*.go`, "*.go", true},
		{`\*.go`, "a.go", false},
		{"./a/*", "a/b", true},
		{"ä*", "äb", true},
	}
	for _, c := range cases {
		pattern, err := Parse(c.pattern)
		if err != nil {
			t.Fatalf("%q: %v", c.pattern, err)
		}
		if got := pattern.Match(c.name); got != c.want {
			t.Errorf("%q on %q: got %v", c.pattern, c.name, got)
		}
	}
	for _, bad := range []string{"{a", "[a", "[]", `a\`} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestMultiGlobFollowsLinksOnce(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"a/one.txt", "a/b/two.txt", "c/three.md"} {
		file := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(folder, "a"), filepath.Join(folder, "c", "link")); err != nil {
		t.Fatal(err)
	}
	pattern, err := Parse(folder + "/c/**/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, follow := range []bool{false, true} {
		var seen []string
		err = MultiGlob(context.Background(), []*Pattern{pattern}, func(name string, _ fs.DirEntry, err error) error {
			seen = append(seen, name)
			return err
		}, TraverseSymlinks(follow))
		var want []string
		if follow {
			want = []string{folder + "/c/link/b/two.txt", folder + "/c/link/one.txt"}
		}
		if err != nil || !slices.Equal(seen, want) {
			t.Errorf("follow %v: got %v, %v", follow, seen, err)
		}
	}
}
