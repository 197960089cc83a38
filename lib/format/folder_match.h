/* Which tensor of a folder's files each parameter is read from. */
#ifndef NN_FORMAT_FOLDER_MATCH_H
#define NN_FORMAT_FOLDER_MATCH_H

#include "format/folder.h"

/* Fills folder->table, sources and dtype for the files and the configuration that it has. Every
 * parameter has its tensor, in its shape and in a dtype that can be converted, and every tensor is
 * used or known to be of no use; or a failure names the first that is not, and says how many more
 * there are. */
nn_status_t folder_match(folder_t *folder);

#endif
