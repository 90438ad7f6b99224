"""The embedding graph of a raw export: features put over placeholders, as text."""

WIDTH, LEVELS = 4, 2
BEFORE = """
g (int64[B,S] input_ids, float[M,4] image_features, float[9,4] table_weight)
=> (float[B,S,4] inputs_embeds, bool[B,S] visual_pos_masks)
<int64 picture = {7}, int64[1] last = {-1}, int64[1] front = {0}> {
  embeds = Gather<axis = 0>(table_weight, input_ids)
  visual_pos_masks = Equal(input_ids, picture)
  wide = Unsqueeze(visual_pos_masks, last)
  size = Shape(embeds)
  spread = Expand(wide, size)
  where = NonZero(spread)
  places = Transpose<perm = [1, 0]>(where)
  flat = Reshape(image_features, last)
  count = Shape<start = 0, end = 1>(places)
  taken = Slice(flat, front, count, front)
  inputs_embeds = ScatterND(embeds, places, taken)
}
"""
