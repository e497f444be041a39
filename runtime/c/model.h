/* Generated for each model: what compiling found out about it besides its plan. */
#ifndef MORENDO_MODEL_H
#define MORENDO_MODEL_H

#include <stdint.h>

#include "morendo.h"
#include "tokenizer.h"

typedef struct {
  const char *name, *version; /* the model's, and morendo's that compiled it */
  const int32_t *stops;       /* ids that end an answer */
  int stop_count;
  int32_t bos;                   /* goes in front of a text, or -1 */
  const char *missing_tokenizer; /* why there are no tables, or NULL */
  const char *missing_chat;      /* why there is no chat form, "" for a model without chats */
  const char *user[2];           /* where missing_chat is NULL: before and behind what the user says */
  const char *system[3];         /* with a system message: before, between, behind; or NULL */
  int trims;                     /* blanks around messages are taken away */
  mr_sampling sampling;
  const int64_t *level_bytes; /* of weights that a decode step reads, by precision level */
  int64_t weights;            /* how many these are */
} Model;

extern const Model model_facts;

/* model.c: appends what mr_chat gives. */
int chat_text(const char *system, const char *said, size_t bytes, Buffer *out);

#endif
