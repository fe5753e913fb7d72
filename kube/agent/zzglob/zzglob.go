// Package zzglob answers to the names buildkite-agent imports from
// drjosh.dev/zzglob, which the Go module proxy does not serve. It is written
// from scratch and covers what the agent asks of it (artifact paths,
// `if_changed`, cache keys): `?`, `*`, `**`, `[abc]`, `[^abc]`, `{a,b}`, `\`
// and a leading `~`. Paths use `/`.
package zzglob

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// symlinkDepthMax bounds how many directory links one walk follows, so that a
// link to a parent ends.
const symlinkDepthMax = 16

var (
	errBrace  = errors.New("unbalanced brace")
	errClass  = errors.New("unterminated character class")
	errEscape = errors.New("nothing follows the final backslash")
)

// Pattern is a parsed glob.
type Pattern struct {
	root       string // deepest folder above every possible match
	expression *regexp.Regexp
}

type parseOptions struct{ expandTilde bool }

// ParseOption changes how Parse reads a pattern.
type ParseOption func(*parseOptions)

// ExpandTilde says whether a leading `~` means the home folder (the default).
func ExpandTilde(enable bool) ParseOption {
	return func(o *parseOptions) { o.expandTilde = enable }
}

type globOptions struct{ traverseSymlinks, walkIntermediateDirs bool }

// GlobOption changes how Glob and MultiGlob walk.
type GlobOption func(*globOptions)

// TraverseSymlinks says whether links to folders are entered (the default).
func TraverseSymlinks(enable bool) GlobOption {
	return func(o *globOptions) { o.traverseSymlinks = enable }
}

// WalkIntermediateDirs says whether the callback also sees the folders on the
// way to a match (not the default).
func WalkIntermediateDirs(enable bool) GlobOption {
	return func(o *globOptions) { o.walkIntermediateDirs = enable }
}

// Parse reads a pattern. Errors: unbalanced braces, an unterminated class, a
// trailing backslash, an unknown home folder.
func Parse(pattern string, options ...ParseOption) (*Pattern, error) {
	chosen := parseOptions{expandTilde: true}
	for _, option := range options {
		option(&chosen)
	}
	home := ""
	if chosen.expandTilde && (pattern == "~" || strings.HasPrefix(pattern, "~/")) {
		folder, err := os.UserHomeDir()
		if err != nil {
			return nil, err
		}
		home, pattern = filepath.ToSlash(folder), pattern[1:]
	}
	pattern = strings.TrimPrefix(pattern, "./")
	body, err := translate(pattern)
	if err != nil {
		return nil, err
	}
	expression, err := regexp.Compile(`\A` + regexp.QuoteMeta(home) + body + `\z`)
	if err != nil {
		return nil, err
	}
	return &Pattern{root: home + literalFolder(pattern), expression: expression}, nil
}

// Match says whether a path, with `/` as separator, is matched.
func (p *Pattern) Match(name string) bool {
	return p.expression.MatchString(strings.TrimPrefix(name, "./"))
}

// Glob calls walk for each match on the host's file system, in lexical order.
func (p *Pattern) Glob(walk fs.WalkDirFunc, options ...GlobOption) error {
	chosen := globOptions{traverseSymlinks: true}
	for _, option := range options {
		option(&chosen)
	}
	root := p.root
	if root == "" {
		root = "."
	}
	return p.walk(path.Clean(root), path.Clean(root), walk, chosen, 0)
}

// MultiGlob globs the patterns one after another until the context ends.
func MultiGlob(ctx context.Context, patterns []*Pattern, walk fs.WalkDirFunc, options ...GlobOption) error {
	guarded := func(name string, entry fs.DirEntry, err error) error {
		if ended := ctx.Err(); ended != nil {
			return ended
		}
		return walk(name, entry, err)
	}
	for _, pattern := range patterns {
		if err := pattern.Glob(guarded, options...); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// walk visits folder, which callers know by the name shown (they differ below
// a followed link).
func (p *Pattern) walk(folder, shown string, visit fs.WalkDirFunc, chosen globOptions, depth int) error {
	return filepath.WalkDir(folder, func(actual string, entry fs.DirEntry, err error) error {
		name := path.Join(shown, strings.TrimPrefix(filepath.ToSlash(strings.TrimPrefix(actual, folder)), "/"))
		if err != nil {
			return visit(name, entry, err)
		}
		if chosen.traverseSymlinks && entry.Type()&fs.ModeSymlink != 0 && depth < symlinkDepthMax {
			target, err := filepath.EvalSymlinks(actual)
			if info, statErr := os.Stat(actual); err == nil && statErr == nil && info.IsDir() {
				return p.walk(target, name, visit, chosen, depth+1)
			}
		}
		if p.Match(name) || chosen.walkIntermediateDirs && entry.IsDir() {
			return visit(name, entry, nil)
		}
		return nil
	})
}

// literalFolder is the part of a pattern up to the last `/` before the first
// special character.
func literalFolder(pattern string) string {
	if i := strings.IndexAny(pattern, `*?[{\`); i >= 0 {
		pattern = pattern[:i]
		return pattern[:strings.LastIndex(pattern, "/")+1]
	}
	return pattern
}

// translate turns a glob into the body of a regular expression.
func translate(pattern string) (string, error) {
	var out strings.Builder
	depth := 0
	for i := 0; i < len(pattern); i++ {
		rest := pattern[i:]
		segmentStart := i == 0 || pattern[i-1] == '/'
		switch {
		case segmentStart && strings.HasPrefix(rest, "**/"):
			out.WriteString(`(?:.*/)?`)
			i += 2
		case strings.HasPrefix(rest, "**"):
			out.WriteString(`.*`)
			i++
		case rest[0] == '*':
			out.WriteString(`[^/]*`)
		case rest[0] == '?':
			out.WriteString(`[^/]`)
		case rest[0] == '{':
			depth++
			out.WriteString(`(?:`)
		case rest[0] == '}' && depth > 0:
			depth--
			out.WriteString(`)`)
		case rest[0] == ',' && depth > 0:
			out.WriteString(`|`)
		case rest[0] == '[':
			class, length, err := translateClass(rest)
			if err != nil {
				return "", err
			}
			out.WriteString(class)
			i += length - 1
		case rest[0] == '\\':
			if len(rest) == 1 {
				return "", errEscape
			}
			out.WriteString(regexp.QuoteMeta(rest[1:2]))
			i++
		default:
			// Bytes above 0x7f are parts of one rune and pass unquoted.
			out.WriteString(regexp.QuoteMeta(rest[:1]))
		}
	}
	if depth != 0 {
		return "", errBrace
	}
	return out.String(), nil
}

// translateClass reads `[…]` at the start of rest; it returns the class and the
// number of bytes read.
func translateClass(rest string) (string, int, error) {
	end := strings.IndexByte(rest, ']')
	if end < 2 {
		return "", 0, errClass
	}
	inside, negation := rest[1:end], ""
	if strings.HasPrefix(inside, "^") {
		inside, negation = inside[1:], "^/"
	}
	if inside == "" {
		return "", 0, errClass
	}
	quoted := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `^`, `\^`).Replace(inside)
	return "[" + negation + quoted + "]", end + 1, nil
}
