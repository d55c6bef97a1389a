# Flattens YAML, and so JSON too, into lines "file/path/of/keys<TAB>value", list items numbered from 0:
#   network-config/ethernets/eth0/addresses/0<TAB>10.0.0.5/24
# A line break inside a value is written \n, a backslash \\ (printf %b turns them back). Understands what cloud-init's files are
# made of: block and flow collections, quoted and plain scalars, literal and folded blocks. No anchors, tags or multi-line plain scalars.

function trim(s) { sub(/^[ \t\r\n]+/, "", s); sub(/[ \t\r\n]+$/, "", s); return s }

function emit(path, value) { gsub(/\\/, "&&", value); gsub(/\n/, "\\n", value); print name path "\t" value }

# Value of a scalar as written: quotes off, escapes resolved, a comment after a plain one cut.
function scalar(s,    out, c) {
  s = trim(s)
  if (s ~ /^'/) { sub(/^'/, "", s); sub(/'([ \t]+#.*)?$/, "", s); gsub(/''/, "'", s); return s }
  if (s !~ /^"/) { sub(/^#.*/, "", s); sub(/[ \t]+#.*$/, "", s); return s == "~" || s == "null" ? "" : s }
  sub(/^"/, "", s); sub(/"([ \t]+#.*)?$/, "", s)
  while (match(s, /\\./)) {
    c = substr(s, RSTART + 1, 1)
    out = out substr(s, 1, RSTART - 1) (c == "n" ? "\n" : c == "t" ? "\t" : c == "r" ? "\r" : c)
    s = substr(s, RSTART + 2)
  }
  return out s
}

# Flow collections are read from the front of the global `rest`. A stray bracket is dropped, or it would be read for ever.
function token(    s) {
  sub(/^[ \t\r\n]+/, "", rest)
  if (match(rest, /^"([^"\\]|\\.)*"/) || match(rest, /^'([^']|'')*'/) || match(rest, /^[^][,{}]*/)) {
    s = substr(rest, 1, RLENGTH)
    rest = substr(rest, RLENGTH + 1)
  }
  return s
}
function flow(path,    i, key) {
  sub(/^[ \t\r\n]+/, "", rest)
  if (rest ~ /^\[/) {
    rest = substr(rest, 2)
    for (i = 0; rest !~ /^[ \t\r\n]*(\]|$)/; i++) { flow(path "/" i); sub(/^[ \t\r\n]*,?/, "", rest); sub(/^\}+/, "", rest) }
    sub(/^[ \t\r\n]*\]/, "", rest)
  } else if (rest ~ /^\{/) {
    rest = substr(rest, 2)
    while (rest !~ /^[ \t\r\n]*(\}|$)/) {
      sub(/^[ \t\r\n]+/, "", rest)
      if (rest ~ /^["']/) key = scalar(token())
      else { match(rest, /^[^:,{}]*/); key = trim(substr(rest, 1, RLENGTH)); rest = substr(rest, RLENGTH + 1) }
      sub(/^[ \t\r\n]*:/, "", rest)
      flow(path "/" key)
      sub(/^[ \t\r\n]*,?/, "", rest); sub(/^\]+/, "", rest)
    }
    sub(/^[ \t\r\n]*\}/, "", rest)
  } else emit(path, scalar(token()))
}
# How many brackets of `s` are still open, those in quotes left out.
function depth(s) {
  gsub(/"([^"\\]|\\.)*"/, "", s); gsub(/'[^']*'/, "", s)
  return gsub(/[[{]/, "", s) - gsub(/[]}]/, "", s)
}

function pop(indent, kind) {
  while (top && (at[top] > indent || (at[top] == indent && (kind == "item" ? is[top] == "item" : 1)))) top--
}
function push(indent, kind, path) { at[++top] = indent; is[top] = kind; where[top] = path }
function here() { return top ? where[top] : "" }

function end_block(    i, text, line) {
  if (!block) return
  for (i = 1; i <= lines; i++) { line = substr(text_line[i], block_indent + 1); text = text line (folded && i < lines && line != "" ? " " : "\n") }
  if (chomp != "+") sub(/\n+$/, chomp == "-" ? "" : "\n", text)
  emit(block_path, text)
  block = 0
}

function value(path, text, indent) {
  if (text == "" || text ~ /^#/) return
  if (text ~ /^[|>][-+0-9]*[ \t]*(#.*)?$/) {
    block = 1; block_path = path; folded = text ~ /^>/; chomp = text ~ /-/ ? "-" : text ~ /\+/ ? "+" : ""
    block_parent = indent; block_indent = -1; lines = 0
  } else if (text ~ /^[[{]/) {
    rest = text
    while (depth(rest) > 0 && (getline more) > 0) rest = rest "\n" more
    flow(path)
  } else emit(path, scalar(text))
}

FNR == 1 { end_block(); top = 0; split("", count); name = FILENAME; sub(/^.*\//, "", name) }
{ sub(/\r$/, "") }
block {
  match($0, /^ */)
  if ($0 ~ /^[ \t]*$/ || RLENGTH > block_parent) {
    if (block_indent < 0 && $0 !~ /^[ \t]*$/) block_indent = RLENGTH
    text_line[++lines] = $0
    next
  }
  end_block()
}
/^[ \t]*(#|$)/ || /^(---|\.\.\.)/ { next }
{
  match($0, /^ */); indent = RLENGTH; text = substr($0, indent + 1)
  while (text ~ /^-([ \t]|$)/) {
    pop(indent, "item"); parent = here()
    path = parent "/" (count[parent] + 0); count[parent]++
    push(indent, "item", path)
    match(text, /^-[ \t]*/); indent += RLENGTH; text = substr(text, RLENGTH + 1)
  }
  if (match(text, /^("([^"\\]|\\.)*"|'[^']*'|[^]["'{},#:&*!|>%@` \t-]([^:#]|:[^ \t])*)[ \t]*:([ \t]|$)/)) {

    key = substr(text, 1, RLENGTH); sub(/[ \t]*:[ \t]*$/, "", key)
    text = trim(substr(text, RLENGTH + 1))
    pop(indent, "key"); path = here() "/" scalar(key)
    push(indent, "key", path); count[path] = 0
    value(path, text, indent)
  } else value(here(), text, top ? at[top] : 0)
}
END { end_block() }
