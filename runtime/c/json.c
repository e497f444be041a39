/* A small JSON reader: one pass into an array of nodes, no copies of the text. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_DEPTH = 32 };

static int parse_value(Json *json);

static int bad(const Json *json, const char *what) {
  return fail(MR_ARTIFACT, "%s: %s, %d bytes before its end", json->name, what,
              (int)(json->end - json->cursor));
}

static int skip_space(Json *json) {
  while (json->cursor < json->end && strchr(" \t\r\n", *json->cursor) && *json->cursor) {
    json->cursor++;
  }
  return json->cursor < json->end ? *json->cursor : 0;
}

static int add_node(Json *json, char kind) {
  if (json->count == json->capacity) {
    int capacity = json->capacity ? 2 * json->capacity : 1024;
    Node *nodes = realloc(json->nodes, (size_t)capacity * sizeof *nodes);
    if (!nodes) return -1;
    json->nodes = nodes;
    json->capacity = capacity;
  }
  json->nodes[json->count] = (Node){.kind = kind, .text = json->cursor};
  return json->count++;
}

static int parse_string(Json *json, Node *node) {
  const char *c = json->cursor + 1;
  node->text = c;
  while (c < json->end && *c != '"') c += *c == '\\' ? 2 : 1;
  if (c >= json->end) return bad(json, "a text without an end");
  node->length = (int)(c - node->text);
  json->cursor = c + 1;
  return MR_OK;
}

static int parse_scalar(Json *json, Node *node) {
  const char *c = json->cursor;
  while (c < json->end && *c && strchr("+-.0123456789abcdefghijklmnopqrstuvwxyzE", *c)) c++;
  if (c == json->cursor) return bad(json, "a value is missing");
  node->length = (int)(c - json->cursor);
  json->cursor = c;
  return MR_OK;
}

static int parse_key(Json *json) {
  if (skip_space(json) != '"') return bad(json, "a key is missing");
  int error = parse_value(json);
  if (error) return error;
  if (skip_space(json) != ':') return bad(json, "a colon is missing");
  json->cursor++;
  return MR_OK;
}

static int parse_children(Json *json, int parent, char close) {
  json->cursor++;
  if (++json->depth > MAX_DEPTH) return bad(json, "too many levels");
  if (skip_space(json) == close) {
    json->cursor++;
    json->depth--;
    return MR_OK;
  }
  for (;;) {
    int error = close == '}' ? parse_key(json) : MR_OK;
    if (!error) error = parse_value(json);
    if (error) return error;
    json->nodes[parent].children++;
    int c = skip_space(json);
    if (c != ',' && c != close) return bad(json, "a comma or bracket is missing");
    json->cursor++;
    if (c == close) break;
  }
  json->depth--;
  return MR_OK;
}

static char kind_of(int c) {
  if (c == '{' || c == '[' || c == '"') return (char)c;
  return c == '-' || (c >= '0' && c <= '9') ? '0' : 'l';
}

static int parse_value(Json *json) {
  int c = skip_space(json);
  int index = add_node(json, kind_of(c));
  if (index < 0) return fail(MR_RUNTIME, "not enough memory to read %s", json->name);
  int error;
  if (c == '{' || c == '[') {
    error = parse_children(json, index, c == '{' ? '}' : ']');
  } else {
    error = c == '"' ? parse_string(json, &json->nodes[index])
                     : parse_scalar(json, &json->nodes[index]);
  }
  json->nodes[index].next = json->count;
  return error;
}

int json_parse(Json *json, const char *name, const char *text, size_t length) {
  *json = (Json){.name = name, .cursor = text, .end = text + length};
  int error = parse_value(json);
  if (!error && skip_space(json)) error = bad(json, "more than one value");
  if (error) json_free(json);
  return error;
}

void json_free(Json *json) {
  free(json->nodes);
  *json = (Json){0};
}

/* The node after `node` and its children: the next sibling, if there is one. */
const Node *json_next(const Json *json, const Node *node) { return json->nodes + node->next; }

int json_is(const Node *node, const char *text) {
  return node->kind == '"' && (size_t)node->length == strlen(text) &&
         !memcmp(node->text, text, (size_t)node->length);
}

const Node *json_get(const Json *json, const Node *object, const char *key) {
  if (!object || object->kind != '{') return NULL;
  const Node *node = object + 1;
  for (int i = 0; i < object->children; i++) {
    if (json_is(node, key)) return node + 1;
    node = json_next(json, node + 1);
  }
  return NULL;
}

/* True, with the value in *out, if `node` is an integer from low to high. */
int json_integer(const Node *node, int64_t low, int64_t high, int64_t *out) {
  char digits[24];
  if (!node || node->kind != '0' || (size_t)node->length >= sizeof digits) return 0;
  memcpy(digits, node->text, (size_t)node->length);
  digits[node->length] = 0;
  char *end;
  *out = strtoll(digits, &end, 10);
  return !*end && low <= *out && *out <= high;
}
