/* Reads schedule.json and checks every number of it (docs/artifact_format.md). */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule.h"

enum { FILE_VERSION = 1, MOST_FILE_BYTES = 1 << 24, MOST_ITEMS = 1 << 16, MOST_WIDTH = 1 << 14 };

static int damaged(const char *what) {
  return fail(MR_ARTIFACT, "schedule.json is damaged: bad %s; run morendo tune again", what);
}

static int no_memory(void) { return fail(MR_RUNTIME, "not enough memory for the schedule"); }

/* A list of pairs [token, level], both rising. */
static int read_fall(const Json *json, const Node *object, int levels, Fall *fall) {
  const Node *list = json_get(json, object, "switches");
  if (!list || list->kind != '[' || list->children > levels) return damaged("switches");
  fall->switches = calloc((size_t)list->children + 1, sizeof *fall->switches);
  if (!fall->switches) return no_memory();
  const Node *node = list + 1;
  int64_t token = 0, level = 0;
  for (int i = 0; i < list->children; i++) {
    int pair = node->kind == '[' && node->children == 2;
    if (!pair || !json_integer(node + 1, token + 1, INT32_MAX, &token) ||
        !json_integer(node + 2, level + 1, levels - 1, &level)) {
      return damaged("switch: a schedule may only fall, within the artifact's levels");
    }
    fall->switches[fall->count++] = (Switch){(int32_t)token, (int32_t)level};
    node = json_next(json, node);
  }
  return MR_OK;
}

static int read_falls(mr_schedule *schedule, const Json *json, const Node *list, int levels) {
  if (!list || list->kind != '[' || !list->children || list->children > MOST_ITEMS) {
    return damaged("choices");
  }
  schedule->falls = calloc((size_t)list->children, sizeof *schedule->falls);
  if (!schedule->falls) return no_memory();
  const Node *node = list + 1;
  for (int i = 0; i < list->children; i++) {
    int error = read_fall(json, node, levels, &schedule->falls[schedule->fall_count++]);
    if (error) return error;
    node = json_next(json, node);
  }
  return MR_OK;
}

static int read_one_fall(mr_schedule *schedule, const Json *json, const Node *object, int levels) {
  schedule->falls = calloc(1, sizeof *schedule->falls);
  if (!schedule->falls) return no_memory();
  schedule->fall_count = 1;
  return read_fall(json, object, levels, schedule->falls);
}

/* `count` integers of a list to `out`; 0 if it is something else. */
static int read_integers(const Json *json, const Node *list, int count, int32_t *out) {
  if (!list || list->kind != '[' || list->children != count) return 0;
  const Node *node = list + 1;
  for (int i = 0; i < count; i++) {
    int64_t value;
    if (!json_integer(node, -INT32_MAX, INT32_MAX, &value)) return 0;
    out[i] = (int32_t)value;
    node = json_next(json, node);
  }
  return 1;
}

static int read_layer(const Json *json, const Node *object, Layer *layer) {
  const Node *rows = json_get(json, object, "weights"), *bias = json_get(json, object, "bias");
  if (!rows || rows->kind != '[' || !rows->children || rows->children > MOST_WIDTH ||
      rows[1].kind != '[' || !rows[1].children || rows[1].children > MOST_WIDTH) {
    return damaged("layer");
  }
  layer->outputs = rows->children;
  layer->inputs = rows[1].children;
  layer->weights = calloc((size_t)layer->outputs * (size_t)layer->inputs, sizeof(int32_t));
  layer->bias = calloc((size_t)layer->outputs, sizeof(int32_t));
  if (!layer->weights || !layer->bias) return no_memory();
  const Node *row = rows + 1;
  for (int i = 0; i < layer->outputs; i++) {
    if (!read_integers(json, row, layer->inputs, layer->weights + (size_t)i * layer->inputs)) {
      return damaged("weights");
    }
    row = json_next(json, row);
  }
  return read_integers(json, bias, layer->outputs, layer->bias) ? MR_OK : damaged("bias");
}

static int read_network(mr_schedule *schedule, const Json *json, const Node *object) {
  int64_t cache, window;
  const Node *layers = json_get(json, object, "layers");
  if (!json_integer(json_get(json, object, "cache"), 0, INT32_MAX, &cache) ||
      !json_integer(json_get(json, object, "window"), 1, INT32_MAX, &window) || !layers ||
      layers->kind != '[' || !layers->children || layers->children > MOST_LAYERS) {
    return damaged("network");
  }
  schedule->cache = (int)cache;
  schedule->window = (int)window;
  const Node *node = layers + 1;
  for (int i = 0; i < layers->children; i++) {
    Layer *layer = &schedule->layers[schedule->layer_count++];
    int error = read_layer(json, node, layer);
    if (error) return error;
    if (i && layer->inputs != layer[-1].outputs) return damaged("layer");
    int wide = layer->inputs > layer->outputs ? layer->inputs : layer->outputs;
    if (wide > schedule->widest) schedule->widest = wide;
    node = json_next(json, node);
  }
  if (schedule->layers[schedule->layer_count - 1].outputs != schedule->fall_count) {
    return damaged("choices");
  }
  for (int i = 0; i < 2; i++) {
    schedule->values[i] = calloc((size_t)schedule->widest, sizeof(double));
    if (!schedule->values[i]) return no_memory();
  }
  return MR_OK;
}

static int read_named(mr_schedule *schedule, const Json *json, const char *name) {
  const Node *root = json->nodes, *object = json_get(json, root, name);
  int levels = mr_levels(schedule->session);
  int64_t version, made_for, threshold;
  if (!json_integer(json_get(json, root, "version"), FILE_VERSION, FILE_VERSION, &version)) {
    return damaged("version");
  }
  if (!json_integer(json_get(json, root, "levels"), levels, levels, &made_for)) {
    return fail(MR_ARTIFACT, "schedule.json is for another artifact: need %d levels", levels);
  }
  if (!object) {
    return fail(MR_INPUT, "the artifact has no %s schedule; make one with: morendo tune", name);
  }
  if (!strcmp(name, "learned")) {
    int error = read_falls(schedule, json, json_get(json, object, "choices"), levels);
    return error ? error : read_network(schedule, json, object);
  }
  if (!strcmp(name, "entropy")) {
    if (!json_integer(json_get(json, object, "threshold"), 0, INT32_MAX, &threshold)) {
      return damaged("threshold");
    }
    schedule->threshold = (double)threshold / 1000;
  }
  return read_one_fall(schedule, json, object, levels);
}

/* The text of DIR/schedule.json, from malloc. */
static int read_file(const char *dir, char **text, size_t *bytes) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/schedule.json", dir) >= (int)sizeof path) {
    return fail(MR_ARTIFACT, "the artifact's path is too long");
  }
  FILE *file = fopen(path, "rbe");
  if (!file && errno == ENOENT) {
    return fail(MR_INPUT, "the artifact has no schedules; make them with: morendo tune");
  }
  if (!file) return fail(MR_ARTIFACT, "cannot read %s: %s", path, strerror(errno));
  *text = malloc(MOST_FILE_BYTES);
  *bytes = *text ? fread(*text, 1, MOST_FILE_BYTES, file) : 0;
  fclose(file);
  if (!*text) return no_memory();
  return *bytes < MOST_FILE_BYTES ? MR_OK : damaged("size");
}

int schedule_read(mr_schedule *schedule, const char *dir, const char *name) {
  char *text = NULL;
  size_t bytes;
  Json json;
  int error = read_file(dir, &text, &bytes);
  if (!error) error = json_parse(&json, "schedule.json", text, bytes);
  if (!error) {
    error = read_named(schedule, &json, name);
    json_free(&json);
  }
  free(text);
  return error;
}

void schedule_clear(mr_schedule *schedule) {
  for (int i = 0; i < schedule->fall_count; i++) free(schedule->falls[i].switches);
  free(schedule->falls);
  for (int i = 0; i < schedule->layer_count; i++) {
    free(schedule->layers[i].weights);
    free(schedule->layers[i].bias);
  }
  free(schedule->values[0]);
  free(schedule->values[1]);
}
