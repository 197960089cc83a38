/* A shared object that is no plugin. */
extern int none;
int none;
