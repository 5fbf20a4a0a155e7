// The singular value of a single column: its norm. Compensated sums of 256 squares in double, and a compensated sum of those.

template <typename Element, typename Scalar>
static void norm_of_column(const TallView& a, int exponent, Scalar* value) {
  constexpr int64_t piece = 256;
  const Scale<double> scale = Scale<double>::of(exponent);
  double column[piece], sum = 0, lost = 0;
  for (int64_t first = 0; first < a.m; first += piece) {
    const int64_t rows = a.m - first < piece ? a.m - first : piece;
    const typename Element::Bits* const piece_of_a = static_cast<const typename Element::Bits*>(a.data) + first * a.row_stride;
    load_rows<double, Element>(TallView{piece_of_a, 1, rows, 0, a.row_stride}, 0, 1, rows, scale, column, rows);  // as a row
    const double term = compensated_dot(column, column, rows) - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
  }
  *value = static_cast<Scalar>(__builtin_ldexp(__builtin_sqrt(sum - lost), -exponent));
}
